"""One client from connecting to leaving, and everything that can come in between."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmdbg.server import RspServer
from kvmdbg.target.runstate import VmRunState
from tests.support import naive_rsp
from tests.support.fake_engine import CODE, DATA
from tests.support.rsp_peer import RspPeer

from .conftest import FakeHost


async def test_connecting_stops_a_running_vm(host: FakeHost, path: Path) -> None:
    await host.vm.resume()
    peer = await RspPeer.unix(path)
    assert (await peer.ask(b"?")).startswith(b"T02")
    await peer.close()


async def test_a_client_that_vanishes(gdb: RspPeer, host: FakeHost) -> None:
    await gdb.ask(b"Z0,%x,1" % DATA)
    await gdb.close()
    await host.wait_left()
    assert host.left == [("gdb-1", False)]
    assert host.fake.engine.breakpoints.specs == set()
    assert host.vm.stop is None


async def test_a_client_that_vanishes_while_the_vm_runs(gdb: RspPeer, host: FakeHost) -> None:
    await gdb.ask(b"Z2,%x,1" % DATA)
    await gdb.send(b"vCont;c")
    await host.wait_running()
    await gdb.close()
    await host.wait_left()
    assert host.fake.engine.breakpoints.specs == set()
    assert host.vm.stop is None
    assert host.vm.gone is None


async def test_the_next_client_is_served(gdb: RspPeer, host: FakeHost, path: Path) -> None:
    await gdb.close()
    await host.wait_left()
    peer = await RspPeer.unix(path)
    assert (await peer.ask(b"?")).startswith(b"T02")
    assert host.joined == ["gdb-1", "gdb-2"]
    await peer.close()


async def test_ctrl_c(gdb: RspPeer, host: FakeHost) -> None:
    await gdb.send(b"vCont;c")
    await host.wait_running()
    gdb.interrupt()
    assert (await gdb.receive()).startswith(b"T02")


async def test_ctrl_c_together_with_the_resumption(gdb: RspPeer) -> None:
    gdb.write(naive_rsp.packet(b"vCont;c") + b"\x03")
    assert (await gdb.receive()).startswith(b"T02")


async def test_late_ctrl_c_does_not_stop_the_next_run(gdb: RspPeer, host: FakeHost) -> None:
    assert (await gdb.ask(b"vCont;s:1")).startswith(b"T05")
    gdb.interrupt()
    await gdb.send(b"vCont;c")
    await host.wait_running()
    await asyncio.sleep(0.05)
    assert host.vm.stop is None
    gdb.interrupt()
    assert (await gdb.receive()).startswith(b"T02")


async def test_foreign_stop(gdb: RspPeer, host: FakeHost) -> None:
    await gdb.send(b"vCont;c")
    await host.wait_running()
    await host.fake.run_control.foreign_stop()
    assert (await gdb.receive()).startswith(b"T02")
    assert b"another monitor stopped the VM" in gdb.console


async def test_foreign_cont_is_told_by_monitor_and_at_the_next_resumption(
    gdb: RspPeer, host: FakeHost
) -> None:
    await gdb.ask(b"?")
    for _ in range(2):
        await host.fake.run_control.foreign_cont()
        await host.wait_notice("resumed")
        host.notices.clear()
    assert (await gdb.monitor("help")).count("another monitor resumed the VM") == 2

    host.vm.notice("something to know")
    await gdb.send(b"vCont;c")
    await host.wait_running()
    gdb.interrupt()
    gdb.console = b""
    await gdb.receive()
    assert gdb.console == b"kvmdbg: something to know\n"


@pytest.mark.parametrize(
    ("state", "signal", "words"),
    [
        (VmRunState.GUEST_PANICKED, b"T06", b"panicked"),
        (VmRunState.SHUTDOWN, b"T20", b"shut down"),
        (VmRunState.IO_ERROR, b"T11", b"io-error"),
    ],
)
async def test_ends_of_the_guest(
    gdb: RspPeer, host: FakeHost, state: VmRunState, signal: bytes, words: bytes
) -> None:
    await gdb.send(b"vCont;c")
    await host.wait_running()
    host.fake.run_control.stop(state)
    assert (await gdb.receive()).startswith(signal)
    assert words in gdb.console
    if state is not VmRunState.IO_ERROR:
        assert b"reset" in await gdb.ask(b"vCont;c")


@pytest.mark.parametrize(("signal", "reply"), [(9, b"X09;process:1"), (0, b"W00;process:1")])
async def test_qemu_ends_while_running(
    gdb: RspPeer, host: FakeHost, signal: int, reply: bytes
) -> None:
    await gdb.send(b"vCont;c")
    await host.wait_running()
    host.fake.run_control.die("QEMU was killed", signal)
    assert await gdb.receive() == reply
    assert b"QEMU was killed" in gdb.console
    assert await gdb.at_end()
    await host.wait_left()


async def test_qemu_ends_while_stopped(gdb: RspPeer, host: FakeHost) -> None:
    await gdb.ask(b"?")
    host.fake.run_control.die("QEMU was killed", 9)
    assert await gdb.at_end()
    await host.wait_left()


async def test_errors_for_a_client_that_knows_numbers_only(peer: RspPeer, host: FakeHost) -> None:
    host.fake.engine.breakpoints.refuse = True
    assert await peer.ask(b"Z0,1000,1") == b"E1c"
    assert await peer.ask(b"m0,1") == b"E0e"
    assert await peer.ask(b"Hg9") == b"E03"
    assert await peer.ask(b"m,") == b"E16"
    output = await peer.monitor("help")
    assert output.startswith("kvmdbg: software breakpoint at 0x1000, length 1 was refused\n")
    assert "memory" not in output.splitlines()[1]
    peer.console = b""
    assert await peer.ask(b"qRcmd," + b"quit".hex().encode()) == b"E05"
    assert peer.console.startswith(b"monitor quit is refused: ")


async def test_why_the_vm_is_not_resumed_is_told_at_once(peer: RspPeer, host: FakeHost) -> None:
    assert (await peer.ask(b"vCont;t:p1.-1")).startswith(b"E")
    assert peer.console.startswith(b"kvmdbg: nothing would run")


async def test_a_flood_of_packets_is_cut_off(gdb: RspPeer, host: FakeHost) -> None:
    await gdb.send(b"vCont;c")
    gdb.write(naive_rsp.packet(b"g") * 5000)
    await host.wait_left()
    assert host.vm.stop is None


async def test_no_file_descriptor_stays_behind(
    host: FakeHost, server: RspServer, path: Path
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for count in range(1, 20):
        peer = await RspPeer.unix(path)
        await peer.ask(b"?")
        await peer.close()
        await host.wait_left(count)
    await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


RESUMES_OR_LEAVES = (b"c", b"C", b"s", b"S", b"v", b"D", b"k", b"R")
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"g", b"?", b"m%x,8" % DATA, b"Z0,%x,1" % CODE, b"z0,%x,1" % CODE, b"Hgp1.2", b"qC", b"!",
         b"p10", b"Z1,0", b"M0,5:00", b"qXfer:features:read::0,1"]
    ),
).filter(lambda payload: not payload.startswith(RESUMES_OR_LEAVES))  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payloads=st.lists(PAYLOADS, max_size=20))
def test_no_packet_goes_unanswered_or_does_harm(payloads: list[bytes], tmp_path: Path) -> None:
    async def scenario() -> None:
        host = FakeHost()
        server = RspServer(host)
        await server.listen(f"unix:{tmp_path / 'fuzz.sock'}")
        peer = await RspPeer.unix(tmp_path / "fuzz.sock")
        await peer.no_acks()
        for payload in payloads:
            await peer.ask(payload)
        assert await peer.ask(b"qC") in (b"QC1", b"QC2", b"QCp1.1", b"QCp1.2")
        await peer.close()
        await host.wait_left()
        assert host.fake.engine.breakpoints.specs == set()
        await server.close()
        await host.vm.quit()

    asyncio.run(scenario())
