"""Several clients at once: one drives, others look."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import MonitorError, VmRunning
from kvmdbg.server import connection
from kvmdbg.server.handlers import memory
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from tests.support import naive_rsp
from tests.support.fake_engine import CODE, DATA, Access
from tests.support.rsp_peer import RspPeer

from .conftest import FakeHost, as_gdb

AHEAD = CODE + 0x40


@pytest.fixture
async def looker(gdb: RspPeer, path: Path) -> AsyncIterator[RspPeer]:
    """A second gdb; the first, which drives, is ``gdb``."""
    peer = await as_gdb(await RspPeer.unix(path))
    yield peer
    await peer.close()


async def looker_waits(host: FakeHost) -> None:
    """Until it waits for the next stop."""
    async with asyncio.timeout(10):
        while "gdb-2" in host.vm.clients.holders:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_who_looks_reads_and_changes_nothing(
    gdb: RspPeer, looker: RspPeer, host: FakeHost
) -> None:
    assert (await looker.ask(b"?")).startswith(b"T05")
    assert await looker.ask(b"m%x,2" % DATA) == b"0000"
    assert await looker.ask(b"qAttached:1") == b"1"
    assert await gdb.ask(b"qAttached:1") == b"0"
    words = b"E.the VM fake is driven by gdb-1: detach it there first, or take over with"
    for payload in (
        b"M%x,1:ff" % DATA,
        b"P0=" + b"0" * 16,
        b"vCont;s:p1.1;c",
        b"c10",
        b"Qqemu.sstep=1",
    ):
        assert (await looker.ask(payload)).startswith(words)
    assert host.fake.engine.execution.plans == []
    # Killing is leaving.
    assert await looker.ask(b"vKill;1") == b"OK"
    assert await looker.at_end()
    await host.wait_left()
    assert host.vm.gone is None


async def test_who_looks_waits_for_the_next_stop(
    gdb: RspPeer, looker: RspPeer, host: FakeHost
) -> None:
    await looker.send(b"vCont;c")
    step = await gdb.ask(b"vCont;s:p1.1")
    assert await looker.receive() == step
    assert b"gdb-1 drives the VM: waiting for its next stop" in looker.console
    # What it has not seen yet, it is shown at once.
    await gdb.ask(b"Z0,%x,1" % AHEAD)
    assert (await gdb.ask(b"vCont;c:p1.1")).endswith(b"swbreak:;")
    assert (await looker.ask(b"vCont;c")).endswith(b"thread:p1.1;")


async def test_a_step_in_passing_is_not_shown_to_who_looks(
    gdb: RspPeer, looker: RspPeer, host: FakeHost
) -> None:
    """The driver's gdb steps off its breakpoint and goes on."""
    await looker.send(b"vCont;c")
    await gdb.ask(b"vCont;s:p1.1")
    await gdb.ask(b"Z0,%x,1" % AHEAD)
    hit = await gdb.ask(b"vCont;c:p1.1")
    assert hit.endswith(b"swbreak:;")
    assert await looker.receive() == hit.removesuffix(b"swbreak:;")
    # The driver's gdb has taken it out again when the looker asks why.
    await gdb.ask(b"z0,%x,1" % AHEAD)
    assert await looker.ask(b"?") == hit.removesuffix(b"swbreak:;")


async def test_who_steps_off_a_breakpoint_of_his_own_is_not_shown_it_again(
    gdb: RspPeer, looker: RspPeer, host: FakeHost
) -> None:
    await looker.ask(b"Z0,%x,1" % AHEAD)
    await gdb.ask(b"vCont;c:p1.1")
    assert (await looker.ask(b"vCont;c")).endswith(b"swbreak:;")
    await looker.send(b"vCont;s:p1.1")
    step = await gdb.ask(b"vCont;s:p1.1")
    assert await looker.receive() == step, "it is told that it has stepped"
    assert await looker.ask(b"vCont;c") == step, "and then where the VM is"
    await looker.send(b"vCont;c")
    step = await gdb.ask(b"vCont;s:p1.1")
    assert await looker.receive() == step


async def test_the_driver_goes_on_while_somebody_is_told_where_it_stopped(
    gdb: RspPeer, looker: RspPeer, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gdb.ask(b"Z0,%x,1" % AHEAD)
    await gdb.ask(b"vCont;c:p1.1")

    async def too_late(vcpu: VcpuIndex) -> list[bytes | None]:
        monkeypatch.undo()
        raise VmRunning("the VM fake is running")

    monkeypatch.setattr(host.vm, "read_block", too_late)
    await looker.send(b"vCont;c")
    await looker_waits(host)
    step = await gdb.ask(b"vCont;s:p1.1")
    assert await looker.receive() == step


async def test_ctrl_c_ends_the_wait(gdb: RspPeer, looker: RspPeer, host: FakeHost) -> None:
    await looker.send(b"vCont;c")
    looker.interrupt()
    assert (await looker.receive()).startswith(b"T02")
    # And it stops a VM that runs, for everybody.
    await looker.send(b"vCont;c")
    await gdb.send(b"vCont;c")
    await host.wait_running()
    looker.interrupt()
    assert (await looker.receive()).startswith(b"T02")
    assert (await gdb.receive()).startswith(b"T02")
    assert b"gdb-2 stopped the VM" in gdb.console


async def test_a_second_client_stops_a_running_vm(gdb: RspPeer, host: FakeHost, path: Path) -> None:
    await gdb.send(b"vCont;c")
    await host.wait_running()
    second = await RspPeer.unix(path)
    assert (await gdb.receive()).startswith(b"T02")
    assert (await second.ask(b"?")).startswith(b"T02")
    await gdb.send(b"vCont;c")
    await host.wait_running()
    assert (await second.ask(b"g")).startswith(b"E10")
    await second.close()
    await host.wait_left()
    assert host.vm.stop is None


async def test_everybody_has_breakpoints_of_his_own(
    gdb: RspPeer, looker: RspPeer, host: FakeHost
) -> None:
    await looker.ask(b"Z0,%x,1" % AHEAD)
    await looker.send(b"vCont;c")
    mine = await gdb.ask(b"vCont;c:p1.1")
    assert (await looker.receive()).endswith(b"thread:p1.1;swbreak:;")
    assert mine.startswith(b"T05")
    assert mine.endswith(b"thread:p1.1;")
    assert b"breakpoint at %#x, length 1, of gdb-2, was hit" % AHEAD in gdb.console
    assert "of gdb-2" not in looker.console.decode()
    said = await gdb.monitor("breakpoints")
    assert said == f"software breakpoint at {AHEAD:#x}, length 1: a fake; gdb-2\n"
    # gdb steps off its breakpoint before it goes on; the step is not its to make.
    await looker.ask(b"z0,%x,1" % AHEAD)
    await looker.ask(b"Z1,%x,1" % (AHEAD + 8))
    await gdb.ask(b"Z0,%x,1" % (AHEAD + 8))
    await looker.send(b"vCont;s:p1.1")
    await looker_waits(host)
    assert len(host.fake.engine.execution.plans) == 1
    assert (await gdb.ask(b"vCont;c:p1.1")).endswith(b"swbreak:;")
    assert (await looker.receive()).endswith(b"thread:p1.1;")
    assert (await looker.ask(b"vCont;c")).endswith(b"hwbreak:;")
    await looker.close()
    await host.wait_left()
    assert await gdb.monitor("breakpoints") == (
        f"software breakpoint at {AHEAD + 8:#x}, length 1: a fake; gdb-1\n"
    )


async def test_hand_over(gdb: RspPeer, looker: RspPeer, host: FakeHost) -> None:
    await gdb.send(b"vCont;c")
    await host.wait_running()
    assert "it has moved since you saw it" in await looker.monitor("drive")
    assert (await gdb.receive()).startswith(b"T02")
    assert b"gdb-2 drives the VM now" in gdb.console
    assert (await looker.monitor("drive")).endswith("gdb-2 drives the VM already\n")
    assert await looker.ask(b"M%x,1:ff" % DATA) == b"OK"
    assert (await gdb.ask(b"M%x,1:00" % DATA)).startswith(b"E.the VM fake is driven by gdb-2")
    await gdb.send(b"vCont;c")
    step = await looker.ask(b"vCont;s:p1.1")
    assert await gdb.receive() == step
    assert await looker.monitor("clients") == (
        "gdb-1      pid 4711     looks\ngdb-2      pid 4711     drives (you)\n"
    )
    # Nobody drives once the driver has left: the next to continue does.
    await looker.ask(b"D;1")
    await host.wait_left()
    assert (await gdb.ask(b"vCont;s:p1.1")).startswith(b"T05")
    assert host.vm.clients.driver == "gdb-1"


async def test_who_waits_does_not_keep_the_vm_stopped(
    gdb: RspPeer, looker: RspPeer, host: FakeHost
) -> None:
    await looker.send(b"vCont;c")
    assert await gdb.ask(b"D;1") == b"OK"
    await host.wait_running()
    looker.interrupt()
    assert (await looker.receive()).startswith(b"T02")
    assert host.vm.clients.holders == {"gdb-2"}


async def test_a_long_search_lets_others_have_their_turn(
    gdb: RspPeer, looker: RspPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_SEARCHED_AT_ONCE", 1)
    search = asyncio.create_task(gdb.ask(b"qCRC:%x,3000" % CODE))
    assert await looker.ask(b"m%x,2" % DATA) == b"0000"
    assert not search.done()
    assert (await search).startswith(b"C")


async def test_a_search_ends_when_nobody_waits_for_it(
    gdb: RspPeer, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(client: object, address: int, length: int) -> bytes:
        return b"\0"

    monkeypatch.setattr(memory, "_read", endless)
    await gdb.send(b"qSearch:memory:0;ffffffffffffffff;01")
    await asyncio.sleep(0.05)
    await gdb.close()
    async with asyncio.timeout(5):
        await host.wait_left()


async def test_what_is_refused_to_who_has_hung_up_is_no_news(
    gdb: RspPeer, path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(command: str, vcpu: object) -> str:
        await asyncio.sleep(0.1)
        raise MonitorError("too late")

    monkeypatch.setattr(host.fake.monitor, "hmp", refuse)
    peer = await RspPeer.unix(path)
    await peer.send(b"qRcmd," + b"info status".hex().encode())
    await asyncio.sleep(0.05)
    await peer.close()
    async with asyncio.timeout(5):
        await host.wait_left()
    assert not [notice for notice in host.notices if "illegal" in notice]


@pytest.mark.parametrize("packet", [b"D;7", b"vKill;7", b"vAttach;7"])
async def test_there_is_one_process(gdb: RspPeer, host: FakeHost, packet: bytes) -> None:
    assert await gdb.ask(packet) == b"E.there is no process 7: the guest is process 1"
    assert host.vm.gone is None
    assert host.vm.stop is not None


@pytest.mark.parametrize(
    "line",
    ["sendkey a", "nmi", "system_powerdown", "system_reset", "o/b 1 1", "i /b 1", "qmp stop",
     "qmp system_reset", 'qmp human-monitor-command {"command-line": "nmi"}', "savevm x"],
)  # fmt: skip
async def test_who_looks_asks_the_monitor_and_tells_it_nothing(
    gdb: RspPeer, looker: RspPeer, host: FakeHost, line: str
) -> None:
    answers = {
        "info status": "paused",
        "x/4i 0": "nop",
        "gva2gpa 0": "0",
        "help": "",
        "print 1": "1",
    }
    host.fake.monitor.hmp_answers = answers
    host.fake.monitor.qmp_answers["query-status"] = {"running": False}
    for harmless in (*answers, "qmp query-status"):
        await looker.monitor(harmless)
    asked = list(host.fake.monitor.asked)
    reply = await looker.ask(b"qRcmd," + line.encode().hex().encode())
    assert reply.startswith(b"E.the VM fake is driven by gdb-1")
    assert host.fake.monitor.asked == asked
    assert host.fake.run_control.calls == []


async def test_monitor_watch(gdb: RspPeer, looker: RspPeer, host: FakeHost) -> None:
    spec = BreakpointSpec(BreakpointKind.WRITE, DATA, 4)
    said = await gdb.monitor(f"watch {DATA:#x} 4")
    assert said == f"write watchpoint at {DATA:#x}, length 4\n"
    assert host.fake.engine.breakpoints.specs == {spec}
    host.fake.guest.accesses[Gva(AHEAD)] = Access(BreakpointKind.WRITE, DATA)
    gdb.console = b""
    reply = await gdb.ask(b"vCont;c:p1.1")
    assert reply.startswith(b"T05")
    assert b"watch" not in reply
    assert b"of gdb-1/monitor, was hit" in gdb.console
    await gdb.monitor(f"watch {DATA:#x} 8 rw")
    await gdb.monitor(f"unwatch {DATA:#x}")
    assert (await gdb.monitor("breakpoints")).startswith("there are none")
    await gdb.monitor(f"watch {DATA:#x} 8 r")
    await gdb.close()
    await host.wait_left()
    assert host.fake.engine.breakpoints.specs == set()


async def test_of_watchpoints_at_one_address_nobody_knows_which(
    gdb: RspPeer, looker: RspPeer, host: FakeHost
) -> None:
    host.fake.guest.accesses[Gva(AHEAD)] = Access(BreakpointKind.WRITE, DATA)
    for length in (3, 256):
        await gdb.monitor(f"watch {DATA:#x} {length}")
    gdb.console = b""
    await gdb.ask(b"vCont;c:p1.1")
    assert b"length 3 or the write watchpoint at" in gdb.console
    assert b"length 256, of gdb-1/monitor, was hit" in gdb.console


async def test_monitor_watch_under_a_condition(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.guest.accesses[Gva(AHEAD)] = Access(BreakpointKind.WRITE, DATA)
    await gdb.monitor(f"watch {DATA:#x} 1 w if value == 3")
    assert "; gdb-1/monitor if value == 3\n" in await gdb.monitor("breakpoints")
    assert (await gdb.ask(b"vCont;c:p1.1")).startswith(b"T05")
    assert await gdb.ask(b"m%x,1" % DATA) == b"03"


@pytest.mark.parametrize(
    "line",
    [
        *("watch", "watch 1", "watch x 1", "watch 1 1 x", "unwatch 77"),
        *("watch 1 1 if", "watch 1 1 w if $no", "watch if 1", "watch 1 0", "watch 1 -1"),
        *("watch -1 8", f"watch {2**64 - 8:#x} 9", f"watch {2**64} 1"),
    ],
)
async def test_monitor_watch_says_what_it_wants(gdb: RspPeer, line: str) -> None:
    assert (await gdb.ask(b"qRcmd," + line.encode().hex().encode())).startswith(b"E.")


@pytest.mark.parametrize("place", [b"1000,0", b"%x,9" % (2**64 - 8)])
async def test_what_cannot_be_watched(gdb: RspPeer, host: FakeHost, place: bytes) -> None:
    for kind in b"234":
        assert b"is refused" in await gdb.ask(b"Z%c,%b" % (kind, place))
    assert host.fake.engine.breakpoints.specs == set()


async def test_who_does_not_read_is_dropped_and_nobody_waits(
    gdb: RspPeer, looker: RspPeer, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_UNREAD", 1 << 16)

    async def stuff() -> None:
        while not host.left:
            looker.write(naive_rsp.packet(b"m%x,8000" % (DATA - 0x2000)))
            await asyncio.sleep(0)

    stuffing = asyncio.create_task(stuff())
    for _ in range(50):
        async with asyncio.timeout(1):
            assert (await gdb.ask(b"vCont;s:p1.1")).startswith(b"T05")
    await host.wait_left()
    await stuffing
    assert host.left == [("gdb-2", False)]
