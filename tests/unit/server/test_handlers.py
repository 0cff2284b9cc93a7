"""What every packet does to the VM."""

import re
from pathlib import Path

import pytest

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import RegisterError
from kvmdbg.server.handlers import memory as on_memory
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.stops import Action, ResumePlan
from tests.support.fake_engine import CODE, CODE_SIZE, DATA, RAM_BASE, RAM_SIZE, Access
from tests.support.rsp_peer import RspPeer

from .conftest import FakeHost

ZERO, ONE = VcpuIndex(0), VcpuIndex(1)
STEP, HOLD = Action.STEP, Action.HOLD


def little(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little").hex().encode()


# --- registers -----------------------------------------------------------------------------------


async def test_registers(gdb: RspPeer, host: FakeHost) -> None:
    arch = host.vm.arch
    block = bytes.fromhex((await gdb.ask(b"g")).decode())
    assert len(block) == sum(register.size for register in arch.block)
    assert block[16 * 8 : 17 * 8] == CODE.to_bytes(8, "little")
    assert await gdb.ask(b"p10") == little(CODE)
    assert await gdb.ask(b"P10=" + little(CODE + 5)) == b"OK"
    assert host.fake.guest.pc(ZERO) == CODE + 5


async def test_registers_for_a_client_that_has_not_read_their_description(
    peer: RspPeer, host: FakeHost
) -> None:
    classic = await peer.ask(b"g")
    assert len(classic) == 2 * (16 * 8 + 8 + 7 * 4 + 8 * 10 + 8 * 4 + 16 * 16 + 4)
    assert await peer.ask(b"G" + little(5) + classic[16:]) == b"OK"
    assert await peer.ask(b"p0") == little(5)
    await peer.ask(b"qXfer:features:read:target.xml:0,10")
    whole = await peer.ask(b"g")
    assert len(whole) == 2 * sum(register.size for register in host.vm.arch.block)
    assert whole.startswith(little(5) + classic[16:])


async def test_all_registers_are_written(gdb: RspPeer, host: FakeHost) -> None:
    block = bytearray.fromhex((await gdb.ask(b"g")).decode())
    block[0:8] = (0x1122334455667788).to_bytes(8, "little")
    assert await gdb.ask(b"G" + block.hex().encode()) == b"OK"
    assert await gdb.ask(b"p0") == little(0x1122334455667788)
    assert (await gdb.ask(b"G00")).startswith(b"E.")


async def test_unavailable_registers(gdb: RspPeer, host: FakeHost) -> None:
    class Nothing:
        async def read_block(self, vcpu: VcpuIndex) -> list[bytes | None]:
            return [None] * len(host.vm.arch.block)

        async def read_register(self, vcpu: VcpuIndex, number: int) -> bytes | None:
            return None

    host.fake.engine.registers = Nothing()  # type: ignore[assignment]
    assert set(await gdb.ask(b"g")) == set(b"x")
    assert await gdb.ask(b"p0") == b"x" * 16
    assert await gdb.ask(b"?") == b"T05thread:p1.1;"


async def test_registers_that_cannot_be_read(gdb: RspPeer, host: FakeHost) -> None:
    class Broken:
        async def read_block(self, vcpu: VcpuIndex) -> list[bytes | None]:
            raise RegisterError("the registers cannot be read")

    host.fake.engine.registers = Broken()  # type: ignore[assignment]
    assert await gdb.ask(b"?") == b"T05thread:p1.1;"
    assert await gdb.ask(b"g") == b"E.the registers cannot be read"


@pytest.mark.parametrize("payload", [b"p1000", b"P1000=00", b"P0=00"])
async def test_register_errors(gdb: RspPeer, payload: bytes) -> None:
    assert (await gdb.ask(payload)).startswith(b"E.")


async def test_registers_of_the_chosen_thread(gdb: RspPeer) -> None:
    assert await gdb.ask(b"Hgp1.2") == b"OK"
    assert await gdb.ask(b"p10") == little(CODE + CODE_SIZE)
    assert await gdb.ask(b"Hg0") == b"OK"
    assert await gdb.ask(b"p10") == little(CODE + CODE_SIZE)


async def test_target_description(gdb: RspPeer, host: FakeHost) -> None:
    xml, offset = b"", 0
    while True:
        part = await gdb.ask(b"qXfer:features:read:target.xml:%x,400" % offset)
        xml += part[1:]
        offset += len(part) - 1
        if part[:1] == b"l":
            break
    assert xml.decode() == host.vm.arch.target_xml
    assert await gdb.ask(b"qXfer:features:read:other.xml:0,10") == b"E00"
    assert await gdb.ask(b"qXfer:features:read:target.xml:ffffff,10") == b"l"
    assert await gdb.ask(b"qXfer:auxv:read::0,10") == b""


# --- memory --------------------------------------------------------------------------------------


async def test_memory(gdb: RspPeer, host: FakeHost) -> None:
    assert await gdb.ask(b"M%x,3:010203" % DATA) == b"OK"
    assert await gdb.ask(b"X%x,2:\x03$" % (DATA + 3)) == b"OK"
    assert await gdb.ask(b"m%x,6" % DATA) == b"010203032400"
    assert await gdb.ask(b"X0,0:") == b"OK"


async def test_memory_that_is_not_there(gdb: RspPeer) -> None:
    end = RAM_BASE + RAM_SIZE
    assert await gdb.ask(b"m%x,10" % (end - 2)) == b"0000"
    assert (await gdb.ask(b"m%x,10" % end)).startswith(b"E.there is no memory")
    assert (await gdb.ask(b"M%x,2:0000" % (end - 1))).startswith(b"E.")
    assert (await gdb.ask(b"m%x,0" % DATA)).startswith(b"E.")


async def test_reads_are_cut_to_what_fits_a_reply(gdb: RspPeer) -> None:
    assert len(await gdb.ask(b"m%x,ffffffff" % RAM_BASE)) == 0x10000


async def test_binary_reads(gdb: RspPeer) -> None:
    assert await gdb.ask(b"X%x,5:\x00#$}*" % DATA) == b"OK"
    assert await gdb.ask(b"x%x,6" % DATA) == b"b\x00#$}*\x00"
    assert await gdb.ask(b"x0,0") == b"b"  # lldb takes OK for a dialect of its own
    assert len(await gdb.ask(b"x%x,ffffffff" % RAM_BASE)) == 1 + 0x8000
    assert (await gdb.ask(b"x0,1")).startswith(b"E.there is no memory")


@pytest.mark.parametrize("at_once", [3, 4, 5, 8, 0x1000])
async def test_search(gdb: RspPeer, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(on_memory, "_SEARCHED_AT_ONCE", at_once)
    await gdb.ask(b"X%x,8:..needle" % DATA)
    for start, length, pattern, reply in (
        (DATA, 0x20, b"needle", b"1,%x" % (DATA + 2)),
        (DATA, 8, b"needle", b"1,%x" % (DATA + 2)),
        (DATA, 7, b"needle", b"0"),
        (DATA + 3, 0x20, b"needle", b"0"),
        (DATA, 0x20, b"e", b"1,%x" % (DATA + 3)),
        (DATA, 0, b"e", b"0"),
    ):
        assert await gdb.ask(b"qSearch:memory:%x;%x;%b" % (start, length, pattern)) == reply
    end = RAM_BASE + RAM_SIZE
    assert (await gdb.ask(b"qSearch:memory:%x;10;x" % (end - 8))).startswith(b"E.there is no")


async def test_checksum(gdb: RspPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_memory, "_SEARCHED_AT_ONCE", 4)
    await gdb.ask(b"X%x,9:123456789" % DATA)
    assert await gdb.ask(b"qCRC:%x,9" % DATA) == b"C0376e6e7"
    assert (await gdb.ask(b"qCRC:0,9")).startswith(b"E.there is no memory")


async def test_physical_memory(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.guest.ram[0:2] = b"\xab\xcd"
    assert (await gdb.ask(b"m0,2")).startswith(b"E.")
    assert await gdb.ask(b"qqemu.PhyMemMode") == b"0"
    assert await gdb.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert await gdb.ask(b"qqemu.PhyMemMode") == b"1"
    assert await gdb.ask(b"m0,2") == b"abcd"
    assert await gdb.ask(b"M0,1:01") == b"OK"
    assert host.fake.guest.ram[0] == 1


# --- objects and files ---------------------------------------------------------------------------


async def test_threads_as_an_object(gdb: RspPeer, peer: RspPeer) -> None:
    assert await gdb.ask(b"qXfer:threads:read::0,1000") == (
        b'l<?xml version="1.0"?>\n<threads>\n  <thread id="p1.1" core="0">vCPU 0</thread>\n'
        b'  <thread id="p1.2" core="1">vCPU 1</thread>\n</threads>\n'
    )
    await gdb.ask(b"qSupported")
    assert b'<thread id="2" ' in await gdb.ask(b"qXfer:threads:read::0,1000")


async def test_memory_map_is_of_physical_memory(gdb: RspPeer) -> None:
    assert await gdb.ask(b"qXfer:memory-map:read::0,1000") == b"E00"
    await gdb.ask(b"Qqemu.PhyMemMode:1")
    regions = await gdb.ask(b"qXfer:memory-map:read::0,1000")
    assert b'<memory type="ram" start="0x0" length="0x10000"/>' in regions
    assert b'<memory type="rom" start="0xfffc0000" length="0x40000"/>' in regions


async def test_the_symbol_file_is_served(gdb: RspPeer, host: FakeHost, tmp_path: Path) -> None:
    content = bytes(range(256)) * 0x200
    host.symbol_file = tmp_path / "vmlinux"
    host.symbol_file.write_bytes(content)
    name = (await gdb.ask(b"qXfer:exec-file:read:1:0,1000"))[1:]
    assert name.decode() == str(host.symbol_file)
    assert await gdb.ask(b"vFile:setfs:0") == b"F0"
    assert await gdb.ask(b"vFile:open:%b,0,0" % name.hex().encode()) == b"F0"
    head, _, status = (await gdb.ask(b"vFile:fstat:0")).partition(b";")
    assert head == b"F40"
    assert int.from_bytes(status[28:36], "big") == len(content)
    read = b""
    while piece := (await gdb.ask(b"vFile:pread:0,10000,%x" % len(read))).partition(b";")[2]:
        read += piece
    assert read == content
    assert await gdb.ask(b"vFile:close:0") == b"F0"
    assert await gdb.ask(b"vFile:close:0") == b"F-1,9"


async def test_no_other_file_is(gdb: RspPeer, host: FakeHost, tmp_path: Path) -> None:
    host.symbol_file = tmp_path / "vmlinux"
    ours, other = (
        b"%b" % path.hex().encode() for path in (bytes(host.symbol_file), b"/etc/passwd")
    )
    assert await gdb.ask(b"vFile:open:%b,0,0" % other) == b"F-1,d"
    assert await gdb.ask(b"vFile:open:%b,0,0" % ours) == b"F-1,2"
    host.symbol_file.touch()
    assert await gdb.ask(b"vFile:open:%b,1,0" % ours) == b"F-1,1e"
    for number in range(16):
        assert await gdb.ask(b"vFile:open:%b,0,0" % ours) == b"F%x" % number
    assert await gdb.ask(b"vFile:open:%b,0,0" % ours) == b"F-1,18"
    host.symbol_file.unlink()
    assert await gdb.ask(b"vFile:pread:3,10,0") == b"F-1,16"
    assert await gdb.ask(b"vFile:fstat:3") == b"F-1,2"
    assert await gdb.ask(b"vFile:fstat:77") == await gdb.ask(b"vFile:pread:77,1,1") == b"F-1,9"
    assert await gdb.ask(b"vFile:unlink:%b" % ours) == b""


# --- threads -------------------------------------------------------------------------------------


async def test_threads(gdb: RspPeer) -> None:
    assert await gdb.ask(b"qfThreadInfo") == b"mp1.1,p1.2"
    assert await gdb.ask(b"qsThreadInfo") == b"l"
    assert await gdb.ask(b"qC") == b"QCp1.1"
    assert await gdb.ask(b"Tp1.2") == b"OK"
    assert (await gdb.ask(b"Tp1.3")).startswith(b"E.there is no thread 3")
    assert (await gdb.ask(b"Tp2.1")).startswith(b"E.there is no process 2")
    assert bytes.fromhex((await gdb.ask(b"qThreadExtraInfo,p1.2")).decode()) == b"vCPU 1"


async def test_threads_without_processes(peer: RspPeer) -> None:
    assert await peer.ask(b"qfThreadInfo") == b"m1,2"
    assert await peer.ask(b"qC") == b"QC1"


# --- breakpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BreakpointKind)
async def test_breakpoints(gdb: RspPeer, host: FakeHost, kind: BreakpointKind) -> None:
    place = b"%x,%x,4" % (kind.value, DATA)
    for _ in range(2):
        assert await gdb.ask(b"Z" + place) == b"OK"
        assert host.fake.engine.breakpoints.specs == {BreakpointSpec(kind, DATA, 4)}
    for _ in range(2):
        assert await gdb.ask(b"z" + place) == b"OK"
        assert host.fake.engine.breakpoints.specs == set()


async def test_breakpoints_that_cannot_be(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.engine.breakpoints.kinds = frozenset({BreakpointKind.SOFTWARE})
    assert await gdb.ask(b"Z3,1000,1") == b""
    host.fake.engine.breakpoints.refuse = True
    assert (await gdb.ask(b"Z0,1000,1")).endswith(b"was refused")
    assert (await gdb.ask(b"Z0,1000,1;X1,27")).startswith(b"E.conditions")


# --- running -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "plan"),
    [
        (b"vCont;c", ResumePlan()),
        (b"vCont;c:p1.-1", ResumePlan()),
        (b"vCont;s:p1.2;c", ResumePlan({ONE: Action.STEP})),
        (b"vCont;s:p1.2;c:p1.-1", ResumePlan({ONE: Action.STEP})),
        (b"vCont;s:p1.2;c:p1.2;c", ResumePlan({ONE: Action.STEP})),
        (b"vCont;c;s:p1.2", ResumePlan()),
        (b"vCont;C05:p1.2", ResumePlan({ONE: Action.CONTINUE}, Action.HOLD)),
        (b"vCont;S05:1", ResumePlan.step(ZERO)),
        (b"vCont;t:1;c", ResumePlan({ZERO: Action.HOLD})),
        (b"vCont;t:p1.1;c:p1.2;s", ResumePlan({ZERO: Action.HOLD, ONE: Action.CONTINUE}, STEP)),
        (b"vCont;r10,20:p1.2;c", ResumePlan({ONE: STEP}, ranges={ONE: (Gva(16), Gva(32))})),
        (b"vCont;r1,2:1;s:1", ResumePlan({ZERO: STEP}, HOLD, {ZERO: (Gva(1), Gva(2))})),
        (b"vCont;c:1;r1,2", ResumePlan({ZERO: Action.CONTINUE}, STEP, {ONE: (Gva(1), Gva(2))})),
        (b"c", ResumePlan({ZERO: Action.CONTINUE})),
        (b"s", ResumePlan({ZERO: Action.STEP})),
        (b"C05", ResumePlan({ZERO: Action.CONTINUE})),
    ],
)
async def test_plans(gdb: RspPeer, host: FakeHost, payload: bytes, plan: ResumePlan) -> None:
    await gdb.send(payload)
    gdb.interrupt()
    assert (await gdb.receive()).startswith(b"T0")
    assert host.fake.engine.execution.plans == [plan]


async def test_step_of_the_thread_that_hc_chose(gdb: RspPeer, host: FakeHost) -> None:
    assert await gdb.ask(b"Hcp1.2") == b"OK"
    reply = await gdb.ask(b"s%x" % (CODE + 0x20))
    assert reply.startswith(b"T05")
    assert b"thread:p1.2;" in reply
    assert host.fake.guest.pc(ONE) == CODE + 0x21
    assert host.fake.guest.instructions[0] == 0


@pytest.mark.parametrize("payload", [b"vCont;t", b"vCont;t:1;t:2", b"vCont;s:p1.9"])
async def test_resumptions_that_cannot_be(gdb: RspPeer, host: FakeHost, payload: bytes) -> None:
    assert (await gdb.ask(payload)).startswith(b"E.")
    assert host.fake.engine.execution.plans == []


async def test_vcont_query(gdb: RspPeer) -> None:
    assert await gdb.ask(b"vCont?") == b"vCont;c;C;s;S;t;r"


async def test_a_range_is_stepped_through_at_once(gdb: RspPeer, host: FakeHost) -> None:
    reply = await gdb.ask(b"vCont;r%x,%x:p1.1" % (CODE, CODE + 7))
    assert reply.startswith(b"T0510:" + little(CODE + 7))
    assert host.fake.guest.instructions == [7, 0]
    # A breakpoint in the range ends it, though a step onto it is no hit.
    await gdb.ask(b"Z1,%x,1" % (CODE + 9))
    reply = await gdb.ask(b"vCont;r%x,%x:p1.1" % (CODE, CODE + 12))
    assert reply.startswith(b"T0510:" + little(CODE + 9))
    assert b"hwbreak" not in reply
    # The range may be left already.
    assert (await gdb.ask(b"vCont;r1,2:p1.1")).startswith(b"T0510:" + little(CODE + 10))


async def test_breakpoint_and_watchpoint_replies(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.guest.accesses[Gva(CODE + CODE_SIZE + 0x80)] = Access(BreakpointKind.WRITE, DATA)
    await gdb.ask(b"Z0,%x,1" % (CODE + CODE_SIZE + 0x40))
    await gdb.ask(b"Z1,%x,1" % (CODE + CODE_SIZE + 0x60))
    await gdb.ask(b"Z2,%x,1" % DATA)
    first, second, third = [await gdb.ask(b"vCont;c:p1.2") for _ in range(3)]
    assert first.endswith(b"thread:p1.2;swbreak:;")
    assert b"10:%b;" % little(CODE + CODE_SIZE + 0x40) in first
    assert second.endswith(b"thread:p1.2;hwbreak:;")
    assert third.endswith(b"thread:p1.2;watch:%x;" % DATA)
    # What is asked next is about the thread that stopped.
    assert await gdb.ask(b"p10") == little(CODE + CODE_SIZE + 0x81)
    assert await gdb.ask(b"?") == third


async def test_step_modes(gdb: RspPeer, host: FakeHost) -> None:
    assert await gdb.ask(b"qqemu.sstepbits") == b"ENABLE=1,NOIRQ=2,NOTIMER=4"
    assert await gdb.ask(b"qqemu.sstep") == b"0x7"
    assert await gdb.ask(b"Qqemu.sstep=1") == b"OK"
    assert await gdb.ask(b"qqemu.sstep") == b"0x1"
    assert (await gdb.ask(b"Qqemu.sstep=0")).startswith(b"E.without the bit ENABLE")
    assert (await gdb.ask(b"Qqemu.sstep=9")).startswith(b"E.there is no step bit 0x8")
    await gdb.close()
    await host.wait_left()
    assert host.fake.engine.execution.step_mode == 7


async def test_an_engine_without_step_modes(gdb: RspPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("tests.support.fake_engine.FakeExecution.step_bits")
    assert await gdb.ask(b"qqemu.sstepbits") == await gdb.ask(b"Qqemu.sstep=7") == b""


async def test_modes_that_are_refused_in_words(gdb: RspPeer) -> None:
    assert await gdb.ask(b"QThreadEvents:1") == b"OK"
    assert await gdb.ask(b"QCatchSyscalls:0") == b"OK"
    assert (await gdb.ask(b"QCatchSyscalls:1;1")).startswith(b"E.system calls are not caught")


# --- the process ---------------------------------------------------------------------------------


async def test_attached(gdb: RspPeer, host: FakeHost) -> None:
    assert await gdb.ask(b"qAttached:1") == b"0"
    host.attached = True
    assert await gdb.ask(b"qAttached") == b"1"


async def test_detach(gdb: RspPeer, host: FakeHost) -> None:
    await gdb.ask(b"Z0,%x,1" % DATA)
    assert await gdb.ask(b"D;1") == b"OK"
    assert await gdb.at_end()
    await host.wait_left()
    assert host.left == [("gdb-1", True)]
    assert host.fake.engine.breakpoints.specs == set()
    assert host.vm.stop is None
    assert host.vm.clients.holders == frozenset()


async def test_detach_and_attach_in_extended_mode(gdb: RspPeer, host: FakeHost) -> None:
    assert await gdb.ask(b"!") == b"OK"
    assert await gdb.ask(b"D;1") == b"OK"
    assert await gdb.ask(b"?") == b"W00;process:1"
    assert await gdb.ask(b"qfThreadInfo") == b"l"
    assert (await gdb.ask(b"g")).startswith(b"E.")
    assert (await gdb.ask(b"vCont;c")).startswith(b"E.")
    assert (await gdb.ask(b"vAttach;2")).startswith(b"E.")
    assert (await gdb.ask(b"vAttach;1")).startswith(b"T02")
    assert host.vm.clients.holders == {"gdb-1"}


async def test_kill_and_restart_in_extended_mode(gdb: RspPeer, host: FakeHost) -> None:
    await gdb.ask(b"!")
    await gdb.ask(b"Z0,%x,1" % DATA)
    assert await gdb.ask(b"vKill;1") == b"OK"
    assert await gdb.ask(b"?") == b"W00;process:1"
    assert await gdb.ask(b"qfThreadInfo") == b"l"
    assert b"vCPU" not in await gdb.ask(b"qXfer:threads:read::0,1000")
    assert host.fake.engine.breakpoints.specs == set()
    await gdb.send(b"R00")
    assert (await gdb.ask(b"?")).startswith(b"T05")
    assert host.fake.run_control.calls[-1] == "reset"
    assert await gdb.ask(b"vKill;1") == b"OK"
    await gdb.close()
    await host.wait_left()
    assert host.vm.gone is not None


async def test_restart(gdb: RspPeer, host: FakeHost) -> None:
    await gdb.send(b"R00")
    assert (await gdb.ask(b"?")).startswith(b"T05")
    assert host.fake.run_control.calls == ["reset"]


@pytest.mark.parametrize("payload", [b"k", b"vKill;1"])
async def test_kill(gdb: RspPeer, host: FakeHost, payload: bytes) -> None:
    await gdb.send(payload)
    if payload != b"k":
        assert await gdb.receive() == b"OK"
    assert await gdb.at_end()
    await host.wait_left()
    assert host.vm.gone is not None
    assert host.left == [("gdb-1", True)]


async def test_kill_of_a_vm_that_is_to_be_left_alone(gdb: RspPeer, host: FakeHost) -> None:
    host.quit_on_kill = False
    await gdb.ask(b"Z0,%x,1" % DATA)
    await gdb.send(b"k")
    await host.wait_left()
    assert host.vm.stop is None
    assert host.fake.engine.breakpoints.specs == set()


# --- lldb ----------------------------------------------------------------------------------------


async def test_what_lldb_asks_first(peer: RspPeer, host: FakeHost) -> None:
    triple = b"triple:" + b"x86_64-unknown-none".hex().encode() + b";ptrsize:8;endian:little;"
    assert await peer.ask(b"qHostInfo") == (
        triple + b"vm-page-size:4096;watchpoint_exceptions_received:after;"
    )
    assert await peer.ask(b"qProcessInfo") == b"pid:1;" + triple
    assert await peer.ask(b"qWatchpointSupportInfo:") == b"num:4;"


async def test_errors_as_lldb_reads_them(peer: RspPeer, host: FakeHost) -> None:
    """In hex after the number; those of monitor commands it would show so, and has on its console
    as well."""
    assert await peer.ask(b"QEnableErrorStrings") == b"OK"
    number, text = (await peer.ask(b"m1234,8")).split(b";")
    assert number == b"E0e"
    assert "0x1234" in bytes.fromhex(text.decode()).decode()
    assert peer.console == b""
    assert (await peer.ask(b"qRcmd," + b"quit".hex().encode())).startswith(b"E05;")
    assert peer.console.startswith(b"monitor quit is refused: ")


# --- monitor -------------------------------------------------------------------------------------


async def test_monitor(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.monitor.hmp_answers["info status"] = "VM status: paused\n" * 500
    assert await gdb.monitor("info status") == "VM status: paused\n" * 500
    assert "monitor qmp COMMAND" in await gdb.monitor("help")
    watch = await gdb.monitor("help watch")
    assert watch.startswith("monitor watch ADDR LEN")
    assert watch.endswith("what is watched\n")
    assert await gdb.monitor("") == await gdb.monitor("help")
    listed = await gdb.monitor("info system-registers")
    assert re.search(r"^cr0 +0x0$", listed, re.MULTILINE)
    assert re.search(r"^dr7 +0x0$", listed, re.MULTILINE)
    assert "rip" not in listed
    assert "reset" in await gdb.monitor("system_reset")
    assert host.fake.run_control.calls == ["reset"]


async def test_monitor_breakpoints(gdb: RspPeer, host: FakeHost) -> None:
    assert "always-inserted" in await gdb.monitor("breakpoints")
    assert await gdb.ask(b"Z0,%x,1" % CODE) == b"OK"
    assert await gdb.monitor("breakpoints") == (
        f"software breakpoint at {CODE:#x}, length 1: a fake; gdb-1\n"
    )


async def test_monitor_qmp(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.monitor.qmp_answers["query-status"] = {"running": False}
    assert await gdb.monitor("qmp query-status") == '{\n  "running": false\n}\n'
    assert await gdb.monitor('qmp query-status {"a": 1}') != ""


async def test_monitor_info_mem_is_not_asked_about_5_levels(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.monitor.hmp_answers["info mem"] = "0000-1000 urw\n"
    assert await gdb.monitor("info mem") == "0000-1000 urw\n"
    number = host.vm.arch.numbers["cr4"]
    host.fake.guest.registers[0][number] = (1 << 12).to_bytes(8, "little")
    reply = await gdb.ask(b"qRcmd," + b"info  mem".hex().encode())
    assert reply.startswith(b"E.monitor info mem is refused: ")


async def test_monitor_qmp_as_one_object(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.monitor.qmp_answers["query-status"] = {"running": False}
    line = 'qmp {"execute": "query-status", "arguments": {"a": 1}}'
    assert await gdb.monitor(line) == '{\n  "running": false\n}\n'


async def test_an_hmp_line_in_qmp_is_one_all_the_same(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.monitor.hmp_answers["info status"] = "paused"
    line = 'qmp human-monitor-command {"command-line": "info status", "cpu-index": 0}'
    assert await gdb.monitor(line) == '"paused"\n'
    await gdb.monitor('qmp human-monitor-command {"command-line": "system_reset"}')
    assert host.fake.run_control.calls == ["reset"]


@pytest.mark.parametrize(
    "line",
    ["quit", "q", "cont", "gdbserver none", "qmp quit", "qmp cont {}", "chardev-change x", "nope",
     "qmp x " + "[" * 5000,
     "qmp x {", "qmp x 1", "qmp {", "qmp {}", 'qmp {"execute": "quit"}', "quit/x", "q\t1",
     "system_reset now", "clients x", "drive x", "info system-registers x", "qmp", "unwatch",
     'qmp human-monitor-command {"command-line": " quit"}', 'qmp {"execute": "x", "arguments": 1}'],
)  # fmt: skip
async def test_monitor_refuses(gdb: RspPeer, host: FakeHost, line: str) -> None:
    reply = await gdb.ask(b"qRcmd," + line.encode().hex().encode())
    assert reply.startswith(b"E.")
    assert host.fake.monitor.asked in ([], ["nope"])
    assert host.vm.gone is None
