"""What every packet does to the VM."""

import pytest

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import RegisterError
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.stops import Action, ResumePlan
from tests.support.fake_engine import CODE, CODE_SIZE, DATA, RAM_BASE, RAM_SIZE, Access
from tests.support.rsp_peer import RspPeer

from .conftest import FakeHost

ZERO, ONE = VcpuIndex(0), VcpuIndex(1)


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


async def test_physical_memory(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.guest.ram[0:2] = b"\xab\xcd"
    assert (await gdb.ask(b"m0,2")).startswith(b"E.")
    assert await gdb.ask(b"qqemu.PhyMemMode") == b"0"
    assert await gdb.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert await gdb.ask(b"qqemu.PhyMemMode") == b"1"
    assert await gdb.ask(b"m0,2") == b"abcd"
    assert await gdb.ask(b"M0,1:01") == b"OK"
    assert host.fake.guest.ram[0] == 1


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


@pytest.mark.parametrize("payload", [b"vCont;r1,2:p1.1", b"vCont;s:p1.9"])
async def test_resumptions_that_cannot_be(gdb: RspPeer, host: FakeHost, payload: bytes) -> None:
    assert (await gdb.ask(payload)).startswith(b"E.")
    assert host.fake.engine.execution.plans == []


async def test_vcont_query(gdb: RspPeer) -> None:
    assert await gdb.ask(b"vCont?") == b"vCont;c;C;s;S"


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
    assert host.vm.holders == frozenset()


async def test_detach_and_attach_in_extended_mode(gdb: RspPeer, host: FakeHost) -> None:
    assert await gdb.ask(b"!") == b"OK"
    assert await gdb.ask(b"D;1") == b"OK"
    assert await gdb.ask(b"?") == b"W00;process:1"
    assert (await gdb.ask(b"g")).startswith(b"E.")
    assert (await gdb.ask(b"vCont;c")).startswith(b"E.")
    assert (await gdb.ask(b"vAttach;2")).startswith(b"E.")
    assert (await gdb.ask(b"vAttach;1")).startswith(b"T02")
    assert host.vm.holders == {"gdb-1"}


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


# --- monitor -------------------------------------------------------------------------------------


async def test_monitor(gdb: RspPeer, host: FakeHost) -> None:
    host.fake.monitor.hmp_answers["info status"] = "VM status: paused\n" * 500
    assert await gdb.monitor("info status") == "VM status: paused\n" * 500
    assert "monitor qmp COMMAND" in await gdb.monitor("help")
    assert await gdb.monitor("") == await gdb.monitor("help")
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


@pytest.mark.parametrize(
    "line",
    ["quit", "q", "cont", "gdbserver none", "qmp quit", "qmp cont {}", "chardev-remove x", "nope",
     "qmp x {", "qmp x 1"],
)  # fmt: skip
async def test_monitor_refuses(gdb: RspPeer, host: FakeHost, line: str) -> None:
    reply = await gdb.ask(b"qRcmd," + line.encode().hex().encode())
    assert reply.startswith(b"E.")
    assert host.fake.monitor.asked in ([], ["nope"])
    assert host.vm.gone is None
