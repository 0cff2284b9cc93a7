"""What gdb asks of a server beyond the basics, by the commands that make it ask."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kvmdbg import Vm
from tests.support import demo
from tests.support.gdb import GDB_18, Gdb, GdbError, start_gdb

pytestmark = pytest.mark.gdb

SECOND = pytest.mark.kvmdbg(cpus=2)


@pytest_asyncio.fixture(params=["gdb", GDB_18], ids=["debian", "18"])
async def any_gdb(kvmdbg_vm: Vm, request: pytest.FixtureRequest) -> AsyncIterator[Gdb]:
    """Either gdb, connected to the VM as that is just now, and given no file."""
    async with start_gdb(None, kvmdbg_vm.status.gdb_socket, request.param) as gdb:
        yield gdb


async def packets(gdb: Gdb, command: str) -> str:
    """What ``command`` and gdb's log of the packets that it took print."""
    await gdb.cli("set debug remote 1")
    try:
        return await gdb.cli(command)
    finally:
        await gdb.cli("set debug remote 0")


async def packet(gdb: Gdb, payload: str) -> str:
    """The answer to a packet that only a user sends."""
    printed = await gdb.cli(f"maintenance packet {payload}")
    answer = re.search(r'received: "(.*)"', printed)
    assert answer, printed
    return answer[1]


async def test_the_kernel_in_memory(kvmdbg_vm: Vm, any_gdb: Gdb) -> None:
    """gdb fetches the symbols itself, and then searches, checks and reads what they name."""
    gdb = any_gdb
    assert str(demo.artefact("vmlinux")) in await gdb.cli("info files")
    await gdb.cli("hbreak start_kernel")
    assert (await gdb.cont())["frame"]["func"] == "start_kernel"

    banner = demo.kernel()["linux_banner"]
    said = await packets(gdb, f"find {banner - 0x1000:#x}, +0x2000, 'L','i','n','u','x',' ','v'")
    assert "qSearch:memory:" in said
    assert "1 pattern found" in said

    said = await packets(gdb, "compare-sections .rodata")
    assert "qCRC:" in said
    assert "Section .rodata" in said

    is_new = await gdb.value("$_gdb_major") >= 17
    said = await packets(gdb, f"x/s {banner:#x}")
    assert "Linux version" in said
    assert ("Sending packet: $x" in said) is is_new
    with pytest.raises(GdbError, match="Cannot access memory at address 0x1234"):
        await gdb.cli("x/x 0x1234")


@SECOND
async def test_threads_come_as_one_object(kvmdbg_vm: Vm, any_gdb: Gdb) -> None:
    said = await packets(any_gdb, "info threads")
    assert "qXfer:threads:read" in said
    assert "qfThreadInfo" not in said
    assert "Thread 1.2 (vCPU 1)" in said


async def test_memory_map(kvmdbg_vm: Vm, any_gdb: Gdb) -> None:
    gdb = any_gdb
    assert "There are no memory regions defined" in await gdb.cli("info mem")
    assert not any("parsing target memory map" in text for text in gdb.console)
    assert await packet(gdb, "Qqemu.PhyMemMode:1") == "OK"
    assert await packet(gdb, "qqemu.PhyMemMode") == "1"
    regions = await packet(gdb, "qXfer:memory-map:read::0,1000")
    assert '<memory type="ram" start="0x0" ' in regions
    assert '<memory type="rom" start="0xfffc0000" length="0x40000"/>' in regions
    reset = await gdb.value("*(unsigned char *)0xfffffff0")
    assert reset == 0xEA, "the reset vector is a far jump"
    await packet(gdb, "Qqemu.PhyMemMode:0")


async def test_step_mode(kvmdbg_vm: Vm, any_gdb: Gdb) -> None:
    gdb = any_gdb
    assert await packet(gdb, "qqemu.sstepbits") == "ENABLE=1,NOIRQ=2,NOTIMER=4"
    assert await packet(gdb, "qqemu.sstep") == "0x7"
    assert await packet(gdb, "Qqemu.sstep=1") == "OK"
    assert (await gdb.stepi())["reason"] == "end-stepping-range"
    assert await packet(gdb, "qqemu.sstep") == "0x1"


async def test_pwndbg_and_gef_know_a_qemu_by_its_packets(kvmdbg_vm: Vm, any_gdb: Gdb) -> None:
    """One that emulates a machine: for one that emulates a program there are offsets."""
    assert await packet(any_gdb, "Qqemu.sstepbits") == "ENABLE=1,NOIRQ=2,NOTIMER=4"
    assert await packet(any_gdb, "qOffsets") == ""
    assert "qXfer:exec-file:read" in await packet(any_gdb, "qSupported")


async def test_registers_in_the_classic_layout(kvmdbg_vm: Vm) -> None:
    """As a gdb that has no XML does, gdb takes the architecture from the program."""
    async with start_gdb(demo.artefact("vmlinux")) as gdb:
        await gdb.cli("set remote target-features-packet off")
        await gdb.mi(f"-target-select remote {kvmdbg_vm.status.gdb_socket}")
        await gdb.wait_stopped()
        assert await gdb.value("$pc") == 0xFFF0
        await gdb.cli("set $rbx = 0x11223344")
        assert await kvmdbg_vm.register("rbx") == 0x11223344
        assert "cr3" not in await gdb.cli("info registers")
        await gdb.stepi()
        assert not any("packet reply" in text for text in gdb.console)


async def test_extended_remote(kvmdbg_vm: Vm) -> None:
    """Detach, attach and run over one connection."""
    async with start_gdb(demo.artefact("vmlinux")) as gdb:
        said = await packets(gdb, f"target extended-remote {kvmdbg_vm.status.gdb_socket}")
        assert "Sending packet: $!#" in said
        await gdb.wait_stopped()
        await gdb.cli("hbreak start_kernel")
        await gdb.cont()
        await gdb.cli("detach")
        await gdb.cli("delete")
        assert "Sending packet: $vAttach;1" in await packets(gdb, "attach 1")
        assert await gdb.value("$pc") == await kvmdbg_vm.register("rip")
        assert "Sending packet: $R0" in await packets(gdb, "starti")
        assert await gdb.value("$pc") == 0xFFF0
        assert await kvmdbg_vm.register("rip") == 0xFFF0


async def test_what_no_event_comes_of(kvmdbg_vm: Vm, any_gdb: Gdb) -> None:
    """vCPUs neither begin nor end, and system calls are not caught."""
    assert await packet(any_gdb, "QThreadEvents:1") == "OK"
    assert await packet(any_gdb, "QThreadEvents:0") == "OK"
    assert await packet(any_gdb, "QCatchSyscalls:0") == "OK"
    refused = await packet(any_gdb, "QCatchSyscalls:1")
    in_words = await any_gdb.value("$_gdb_major") >= 17
    assert refused.startswith("E.system calls are not caught" if in_words else "E5f")
    assert (await any_gdb.stepi())["reason"] == "end-stepping-range"
