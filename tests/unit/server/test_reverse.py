"""Running backwards, as clients ask for it and are told of it."""

from kvmdbg.addr import VcpuIndex
from kvmdbg.target.stops import Action, HistoryEnd, Stepped, Stop
from tests.support.fake_engine import CODE
from tests.support.rsp_peer import RspPeer

from .conftest import FakeHost

CPU = VcpuIndex(0)


async def test_without_a_replay_it_is_refused_in_words(gdb: RspPeer, host: FakeHost) -> None:
    for packet in (b"bs", b"bc"):
        said = await gdb.ask(packet)
        assert said.startswith(b"E.the engine fake cannot run backwards")
        assert b"record one with --record FILE" in said
    assert host.fake.engine.execution.plans == []


async def test_back_and_to_the_beginning(gdb: RspPeer, host: FakeHost) -> None:
    execution = host.fake.engine.execution
    execution.replayed = execution.recorded = True
    execution.back = [Stop(CPU, Stepped()), Stop(CPU, HistoryEnd(first=True))]
    assert b"replaylog" not in await gdb.ask(b"bs")
    assert (await gdb.ask(b"bc")).endswith(b"replaylog:begin;")
    assert [plan.default for plan in execution.plans] == [Action.STEP, Action.CONTINUE]


async def test_a_recorded_run_is_not_changed(gdb: RspPeer, host: FakeHost) -> None:
    execution = host.fake.engine.execution
    execution.recorded = True
    for packet in (b"P10=" + b"00" * 8, b"M%x,1:00" % CODE, b"qRcmd,73797374656d5f7265736574"):
        assert (await gdb.ask(packet)).startswith(b"E.the run is recorded and cannot be changed")
