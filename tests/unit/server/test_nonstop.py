"""Non-stop mode: each vCPU for itself, told of by notifications."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmdbg.addr import Gva, VcpuIndex
from tests.support.fake_engine import CODE, CODE_SIZE
from tests.support.rsp_peer import RspPeer

from .conftest import FakeHost, as_gdb

ZERO, ONE = VcpuIndex(0), VcpuIndex(1)
OTHER = Gva(CODE + CODE_SIZE)
"""Where vCPU 1 has its loop."""


@pytest.fixture
async def apart(gdb: RspPeer) -> RspPeer:
    """A gdb in non-stop mode, that knows that both vCPUs are stopped."""
    assert await gdb.ask(b"QNonStop:1") == b"OK"
    assert thread(await gdb.ask(b"?")) == 1
    assert await gdb.ask(b"vStopped") == b"OK"  # gdb would not survive to be told of both here
    assert await gdb.ask(b"Hgp1.1") == b"OK"
    assert [thread(stop) for stop in await told(gdb)] == [2]
    return gdb


@pytest.fixture
async def looker(gdb: RspPeer, path: Path) -> AsyncIterator[RspPeer]:
    peer = await RspPeer.unix(path)
    yield await as_gdb(peer)
    await peer.close()


def thread(stop: bytes) -> int:
    found = re.search(rb"thread:p1\.([0-9a-f]+);", stop)
    assert found is not None, stop
    return int(found[1], 16)


async def told(peer: RspPeer) -> list[bytes]:
    """The stop that is notified, and those that come with it."""
    stops = [(await peer.notified()).removeprefix(b"Stop:")]
    while (following := await peer.ask(b"vStopped")) != b"OK":
        stops.append(following)
    return stops


async def runs(host: FakeHost, vcpu: int) -> bool:
    before = host.fake.guest.instructions[vcpu]
    await asyncio.sleep(0.02)
    return host.fake.guest.instructions[vcpu] > before


async def pc(peer: RspPeer, number: int) -> int:
    await peer.ask(b"Hgp1.%x" % number)
    return int.from_bytes(bytes.fromhex((await peer.ask(b"p10")).decode()), "little")


async def test_one_hits_a_breakpoint_and_the_other_runs_on(apart: RspPeer, host: FakeHost) -> None:
    assert await apart.ask(b"Z0,%x,1" % (CODE + 5)) == b"OK"
    assert await apart.ask(b"vCont;c:p1.-1") == b"OK"
    (stop,) = await told(apart)
    assert stop.startswith(b"T05")
    assert b"swbreak:;" in stop
    assert thread(stop) == 1
    assert await runs(host, ONE)
    assert await pc(apart, 1) == CODE + 5
    assert (await apart.ask(b"m%x,2" % CODE)) != b""
    assert await apart.ask(b"Hgp1.2") == b"OK"
    assert b"is running" in await apart.ask(b"g")
    assert await runs(host, ONE)
    assert not await runs(host, ZERO)


async def test_a_stop_that_was_asked_for_has_no_signal(apart: RspPeer, host: FakeHost) -> None:
    assert await apart.ask(b"vCont;c:p1.-1") == b"OK"
    assert await runs(host, ONE)
    assert await apart.ask(b"vCont;t:p1.2") == b"OK"
    (stop,) = await told(apart)
    assert stop.startswith(b"T00")
    assert thread(stop) == 2
    assert not await runs(host, ONE)
    assert await runs(host, ZERO)
    assert await apart.ask(b"vCont;t:p1.2") == b"OK"  # it is stopped already
    assert await apart.ask(b"vCtrlC") == b"OK"
    (stop,) = await told(apart)
    assert (stop[:3], thread(stop)) == (b"T00", 1)
    assert apart.notifications == []


async def test_one_steps_while_the_other_runs(apart: RspPeer, host: FakeHost) -> None:
    assert await apart.ask(b"vCont;c:p1.1") == b"OK"
    before = await pc(apart, 2)
    for count in (1, 2, 3):
        assert await apart.ask(b"vCont;s:p1.2") == b"OK"
        (stop,) = await told(apart)
        assert (stop[:3], thread(stop)) == (b"T05", 2)
        assert await pc(apart, 2) == before + count
    assert await apart.ask(b"vCont;r%x,%x:p1.2" % (before, before + 9)) == b"OK"
    (stop,) = await told(apart)
    assert await pc(apart, 2) == before + 9
    assert await runs(host, ZERO)


async def test_the_next_stop_is_told_when_the_last_is_known(apart: RspPeer, host: FakeHost) -> None:
    for at in (CODE + 5, OTHER + 7):
        assert await apart.ask(b"Z0,%x,1" % at) == b"OK"
    assert await apart.ask(b"vCont;c") == b"OK"
    first = (await apart.notified()).removeprefix(b"Stop:")
    await asyncio.sleep(0.05)
    second = await apart.ask(b"vStopped")
    assert apart.notifications == []
    assert {thread(first), thread(second)} == {1, 2}
    assert b"swbreak:;" in second
    assert await apart.ask(b"vStopped") == b"OK"
    for number in (1, 2):  # and each goes on from where it was
        assert await apart.ask(b"vCont;c:p1.%x" % number) == b"OK"
        (stop,) = await told(apart)
        assert thread(stop) == number


async def test_a_hit_is_not_lost_to_a_stop_that_was_asked_for(
    apart: RspPeer, host: FakeHost
) -> None:
    """Each of its hits is told, whatever the other is made to do meanwhile."""
    assert await apart.ask(b"Z0,%x,1" % (CODE + 5)) == b"OK"
    for _ in range(30):
        before = host.fake.guest.instructions[ZERO]
        assert await apart.ask(b"vCont;c:p1.-1") == b"OK"
        assert await apart.ask(b"vCont;t:p1.-1") == b"OK"
        stops = {thread(stop): stop for stop in await told(apart)}
        assert stops.keys() == {1, 2}
        rounds = (host.fake.guest.instructions[ZERO] - before) // CODE_SIZE
        assert rounds <= 1
        if b"swbreak" in stops[1]:
            assert await pc(apart, 1) == CODE + 5


async def test_who_has_only_just_connected_can_let_all_go(gdb: RspPeer, host: FakeHost) -> None:
    """It has not been told yet that the second is stopped, and need not be."""
    assert await gdb.ask(b"QNonStop:1") == b"OK"
    assert thread(await gdb.ask(b"?")) == 1
    assert await gdb.ask(b"vStopped") == b"OK"
    assert await gdb.ask(b"vCont;c") == b"OK"
    assert await runs(host, ZERO)
    assert await runs(host, ONE)
    await asyncio.sleep(0.7)
    assert gdb.notifications == []
    assert await gdb.ask(b"vCtrlC") == b"OK"
    assert {thread(stop) for stop in await told(gdb)} == {1, 2}


async def test_who_has_only_just_connected_can_stop_all(gdb: RspPeer, host: FakeHost) -> None:
    assert await gdb.ask(b"QNonStop:1") == b"OK"
    assert thread(await gdb.ask(b"?")) == 1
    assert await gdb.ask(b"vStopped") == b"OK"
    assert await gdb.ask(b"vCtrlC") == b"OK"
    assert [thread(stop) for stop in await told(gdb)] == [2]


async def test_who_asks_for_nothing_else_is_told_in_the_end(
    gdb: RspPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmdbg.server.session._BEARINGS", 0.05)
    assert await gdb.ask(b"QNonStop:1") == b"OK"
    assert thread(await gdb.ask(b"?")) == 1
    assert await gdb.ask(b"vStopped") == b"OK"
    assert [thread(stop) for stop in await told(gdb)] == [2]


async def test_who_was_not_told_of_a_stop_does_not_end_it(apart: RspPeer, host: FakeHost) -> None:
    """gdb lets all go when it believes that one is stopped; the other has stopped meanwhile."""
    assert await apart.ask(b"Z0,%x,1" % (OTHER + 7)) == b"OK"
    assert await apart.ask(b"vCont;c:p1.2") == b"OK"
    notified = await apart.notified()
    assert await apart.ask(b"vCont;c") == b"OK"
    assert await runs(host, ZERO)
    assert not await runs(host, ONE)
    assert thread(notified) == 2
    assert await apart.ask(b"vStopped") == b"OK"
    assert await pc(apart, 2) == OTHER + 7


async def test_all_stop_again(apart: RspPeer, host: FakeHost) -> None:
    assert await apart.ask(b"vCont;c:p1.2") == b"OK"
    assert await apart.ask(b"QNonStop:0") == b"OK"
    assert not await runs(host, ONE)
    assert (await apart.ask(b"vCont;s:p1.1")).startswith(b"T05")


@pytest.mark.parametrize("farewell", [b"D;1", None])
async def test_who_leaves_leaves_all_running(
    apart: RspPeer, host: FakeHost, farewell: bytes | None
) -> None:
    assert await apart.ask(b"vCont;c:p1.2") == b"OK"
    if farewell:
        assert await apart.ask(farewell) == b"OK"
    await apart.close()
    await host.wait_left()
    assert await runs(host, ZERO)
    assert await runs(host, ONE)
    assert not host.vm.apart
    assert host.vm.clients.alone is None


async def test_others_can_look_but_neither_drive_nor_do_the_same(
    apart: RspPeer, looker: RspPeer, host: FakeHost
) -> None:
    assert (await looker.ask(b"QNonStop:1")).startswith(b"E.gdb-1 drives the VM")
    drive = b"qRcmd," + b"drive".hex().encode()
    assert b"in non-stop mode" in await looker.ask(drive)
    assert await apart.ask(b"vCont;c:p1.-1") == b"OK"
    await looker.send(b"vCont;c")
    looker.interrupt()
    assert (await looker.receive()).startswith(b"T02")
    assert {thread(stop) for stop in await told(apart)} == {1, 2}


async def test_what_stops_the_machine_is_told_of_all(apart: RspPeer, host: FakeHost) -> None:
    assert await apart.ask(b"vCont;c:p1.-1") == b"OK"
    await host.wait_running()
    host.fake.run_control.panic()
    stops = await told(apart)
    assert [(stop[:3], thread(stop)) for stop in stops] == [(b"T06", 1), (b"T06", 2)]
    assert b"cannot run on" in await apart.ask(b"vCont;c:p1.-1")


async def test_the_end_is_told(apart: RspPeer, host: FakeHost) -> None:
    assert await apart.ask(b"vCont;c:p1.-1") == b"OK"
    host.fake.run_control.die("it was killed", 9)
    assert await apart.notified() == b"Stop:X09;process:1"
    assert await apart.at_end()


@pytest.mark.parametrize("packet", [b"c", b"s", b"bc"])
async def test_what_is_of_all_stop_mode_is_refused(apart: RspPeer, packet: bytes) -> None:
    assert (await apart.ask(packet)).startswith(b"E.in non-stop mode")


async def test_what_is_of_non_stop_mode_is_refused_elsewhere(gdb: RspPeer) -> None:
    for packet in (b"vStopped", b"vCtrlC"):
        assert (await gdb.ask(packet)).startswith(b"E.threads stop together")
