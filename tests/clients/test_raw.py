"""Every packet by itself, on a live VM: also what no other client of the tests has a use for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kvmdbg import Vm
from tests.support import demo
from tests.support.rsp_peer import RspPeer

pytestmark = pytest.mark.vm

PLACE = 0x8000
"""In RAM, whatever the BIOS does."""

ASKED: list[tuple[bytes, bytes]] = [
    (b"!", b"OK"),
    (b"QNonStop:0", b"OK"),
    (b"QCatchSyscalls:0", b"OK"),
    (b"QThreadEvents:1", b"OK"),
    (b"qHostInfo", b"triple:"),
    (b"qProcessInfo", b"pid:1;triple:"),
    (b"qWatchpointSupportInfo:", b"num:4;"),
    (b"qAttached:1", b"0"),
    # threads
    (b"qC", b"QCp1.1"),
    (b"qfThreadInfo", b"mp1.1,p1.2"),
    (b"qsThreadInfo", b"l"),
    (b"qThreadExtraInfo,p1.2", b"vCPU 1".hex().encode()),
    (b"Tp1.2", b"OK"),
    (b"Hgp1.2", b"OK"),
    (b"Hgp1.1", b"OK"),
    (b"Hcp1.-1", b"OK"),
    # registers: rip, then rax
    (b"p10", b"f0ff000000000000"),
    (b"P0=1100000000000000", b"OK"),
    (b"p0", b"1100000000000000"),
    # memory
    (b"M%x,2:6b76" % PLACE, b"OK"),
    (b"X%x,2:md" % (PLACE + 2), b"OK"),
    (b"m%x,4" % PLACE, b"6b766d64"),
    (b"x%x,4" % PLACE, b"bkvmd"),
    (b"qSearch:memory:%x;100;md" % PLACE, b"1,%x" % (PLACE + 2)),
    (b"qCRC:%x,4" % PLACE, b"Cf235faff"),
    (b"Qqemu.PhyMemMode:1", b"OK"),
    (b"qqemu.PhyMemMode", b"1"),
    (b"qXfer:memory-map:read::0,1000", b"l<?xml"),
    (b"Qqemu.PhyMemMode:0", b"OK"),
    # objects and files
    (b"qXfer:features:read:target.xml:0,20", b"m<?xml"),
    (b"qXfer:threads:read::0,1000", b"l<?xml"),
    (b"qXfer:exec-file:read:1:0,1000", b"l/"),
    (b"vFile:setfs:0", b"F0"),
    (b"vFile:open:%b,0,0" % str(demo.artefact("vmlinux")).encode().hex().encode(), b"F0"),
    (b"vFile:fstat:0", b"F40;"),
    (b"vFile:pread:0,4,0", b"F4;\x7fELF"),
    (b"vFile:close:0", b"F0"),
    # breakpoints
    *[(b"%c%d,%x,1" % (letter, kind, PLACE), b"OK") for kind in range(5) for letter in b"Zz"],
    # steps
    (b"?", b"T05"),
    (b"vCont?", b"vCont;c;C;s;S;t;r"),
    (b"qqemu.sstepbits", b"ENABLE=1,NOIRQ=2,NOTIMER=4"),
    (b"Qqemu.sstepbits", b"ENABLE=1,NOIRQ=2,NOTIMER=4"),
    (b"qqemu.sstep", b"0x7"),
    (b"Qqemu.sstep=7", b"OK"),
    (b"vCont;s:p1.1", b"T05"),
    (b"vCont;r0,1:p1.1;t:p1.2", b"T05"),
    (b"s", b"T05"),
    (b"S05", b"T05"),
    (b"qRcmd," + b"info status".hex().encode(), b"OK"),
]  # fmt: skip
"""Packets, in order, and how their answers begin."""


@pytest_asyncio.fixture
async def peer(kvmdbg_vm: Vm) -> AsyncIterator[RspPeer]:
    """Connected, with nothing negotiated."""
    peer = await RspPeer.unix(Path(kvmdbg_vm.status.gdb_socket))
    yield peer
    await peer.close()


@pytest.mark.kvmdbg(cpus=2)
async def test_every_packet(kvmdbg_vm: Vm, peer: RspPeer) -> None:
    features = b"multiprocess+;swbreak+;hwbreak+;error-message+"
    assert b"vContSupported+" in await peer.ask(b"qSupported:" + features)
    await peer.no_acks()
    for packet, answer in ASKED:
        said = await peer.ask(packet)
        assert said.startswith(answer), packet
    registers = await peer.ask(b"g")
    assert await peer.ask(b"G" + registers) == b"OK"
    for packet in (b"vCont;c", b"c", b"C05"):
        await peer.send(packet)
        peer.interrupt()
        assert (await peer.receive()).startswith(b"T02"), packet
    # Threads one by one.
    assert await peer.ask(b"QNonStop:1") == b"OK"
    assert (await peer.ask(b"?")).startswith(b"T")
    assert await peer.ask(b"vStopped") == b"OK"
    assert b"thread:p1.2;" in await peer.notified()
    assert await peer.ask(b"vStopped") == b"OK"
    assert await peer.ask(b"vCont;c") == b"OK"
    assert await peer.ask(b"vCtrlC") == b"OK"
    assert (await peer.notified()).startswith(b"Stop:T00")
    assert (await peer.ask(b"vStopped")).startswith(b"T00")
    assert await peer.ask(b"vStopped") == b"OK"
    assert await peer.ask(b"QNonStop:0") == b"OK"
    # The process: detached from, attached to, killed, restarted, killed for good.
    assert await peer.ask(b"D;1") == b"OK"
    assert (await peer.ask(b"vAttach;1")).startswith(b"T02")
    assert await peer.ask(b"vKill;1") == b"OK"
    await peer.send(b"R00")
    assert await peer.ask(b"p10") == b"f0ff000000000000"
    await peer.send(b"k")
    await kvmdbg_vm.wait_gone()
