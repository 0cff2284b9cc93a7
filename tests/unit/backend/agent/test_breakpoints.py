"""What a breakpoint is made of."""

from dataclasses import replace

import pytest

from kvmdbg.addr import Gva
from kvmdbg.backend.agent import Abilities
from kvmdbg.backend.agent.placement import pieces
from kvmdbg.errors import BreakpointError
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.stops import BreakpointHit, WatchpointHit
from kvmdbg.wire.structs import Kind, PointState, Stop, StopKind

from .conftest import LONG_MODE, Kit

SOFTWARE, HARDWARE = BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE
WRITE, READ, ACCESS = BreakpointKind.WRITE, BreakpointKind.READ, BreakpointKind.ACCESS
NOP5 = bytes.fromhex("0f1f440000")
UNMAPPED = 0x20000


async def insert(kit: Kit, kind: BreakpointKind, address: int, length: int = 1) -> BreakpointSpec:
    spec = BreakpointSpec(kind, Gva(address), length)
    await kit.engine.breakpoints.insert(spec)
    return spec


def points(kit: Kit) -> list[tuple[Kind, int]]:
    return sorted((point.kind, point.address) for point in kit.agent.table.values())


async def described(kit: Kit) -> dict[int, str]:
    return {
        found.spec.address: f"{found.how}{'' if found.armed else ', not armed'}: {found.note}"
        for found in await kit.engine.breakpoints.describe()
    }


async def test_a_software_breakpoint_is_an_int3(kit: Kit) -> None:
    spec = await insert(kit, SOFTWARE, 0x1000)
    assert points(kit) == [(Kind.SOFTWARE, 0x1000)]
    assert await described(kit) == {0x1000: "int3: "}
    await kit.engine.breakpoints.remove(spec)
    assert points(kit) == []


async def test_one_point_serves_both_kinds(kit: Kit) -> None:
    software = await insert(kit, SOFTWARE, 0x1000)
    hardware = await insert(kit, HARDWARE, 0x1000)
    assert points(kit) == [(Kind.HARDWARE, 0x1000)]
    (point,) = kit.agent.table
    assert kit.engine.breakpoints.hit(point) == BreakpointHit(SOFTWARE, Gva(0x1000))
    await kit.engine.breakpoints.remove(software)
    assert kit.engine.breakpoints.hit(point) == BreakpointHit(HARDWARE, Gva(0x1000))
    await kit.engine.breakpoints.remove(hardware)
    assert points(kit) == []


async def test_what_the_kernel_patches_gets_a_register_while_there_is_one(kit: Kit) -> None:
    kit.agent.debug_registers = 2
    for address in (0x2000, 0x2100, 0x2200):
        kit.agent.memory[address : address + 5] = NOP5
        await insert(kit, SOFTWARE, address)
    kit.agent.memory[0x2300] = 0xE8
    assert points(kit) == [
        (Kind.SOFTWARE, 0x2200),
        (Kind.HARDWARE, 0x2000),
        (Kind.HARDWARE, 0x2100),
    ]
    texts = await described(kit)
    assert texts[0x2000] == "debug register 0: the kernel may patch that instruction itself"
    assert texts[0x2200].endswith("itself, but every debug register is taken")


async def test_programs_get_a_register_while_there_is_one(kit: Kit) -> None:
    kit.agent.user = range(0x2000, 0x3000)
    for n in range(5):
        await insert(kit, SOFTWARE, 0x2000 + n)
    assert [kind for kind, _ in points(kit)] == [Kind.SOFTWARE] + [Kind.HARDWARE] * 4
    assert "another program may be meant" in (await described(kit))[0x2000]


async def test_the_guards_are_left_a_register(kit: Kit) -> None:
    async def patchers() -> list[Gva]:
        return [Gva(0x4000)]

    kit.engine.breakpoints.guard_against(patchers)
    for address in range(0x2000, 0x2500, 0x100):
        kit.agent.memory[address : address + 5] = NOP5
        await insert(kit, SOFTWARE, address)
    assert [kind for kind, _ in points(kit)].count(Kind.HARDWARE) == 3
    assert (await described(kit))[0x2000].endswith("but its debug register was needed")
    for n in range(3):
        await insert(kit, WRITE, 0x5000 + 8 * n, 8)
    assert [kind for kind, _ in points(kit)].count(Kind.HARDWARE) == 0
    await insert(kit, HARDWARE, 0x1000)  # the user's wish comes first
    assert points(kit)[-4][0] is Kind.HARDWARE


@pytest.mark.parametrize(
    ("address", "code", "kind"),
    [
        (0x3000, "e811223344", Kind.HARDWARE),  # a traced function's entry
        (0x3008, "e811223344", Kind.SOFTWARE),  # a call in the midst of a function
        (0x3006, "f30f1efae811223344", Kind.HARDWARE),  # an entry after endbr64
        (0x3008, "e8f30f0000", Kind.HARDWARE),  # a call of __fentry__, which returns at once
        (0x3003, "6690", Kind.HARDWARE),
        (0x3003, "eb10", Kind.HARDWARE),
        (0x3003, "0f1f440004", Kind.SOFTWARE),
    ],
)
async def test_patched_sites_by_their_bytes(kit: Kit, address: int, code: str, kind: Kind) -> None:
    data = bytes.fromhex(code)
    kit.agent.memory[0x4000] = 0xC3
    kit.agent.memory[address : address + len(data)] = data
    await insert(kit, SOFTWARE, address + 4 * code.startswith("f30f"))
    (point,) = kit.agent.table.values()
    assert point.kind is kind


async def test_a_watchpoint_takes_the_register_of_a_software_breakpoint(kit: Kit) -> None:
    kit.agent.debug_registers = 1
    kit.agent.memory[0x2000:0x2005] = NOP5
    await insert(kit, SOFTWARE, 0x2000)
    await insert(kit, WRITE, 0x5000, 8)
    assert points(kit) == [(Kind.SOFTWARE, 0x2000), (Kind.WATCH_WRITE, 0x5000)]
    assert (await described(kit))[0x2000].endswith("but its debug register was needed")


async def test_hardware_breakpoints_beyond_the_registers_are_int3s(kit: Kit) -> None:
    for n in range(6):
        await insert(kit, HARDWARE, 0x1000 + n)
    assert [kind for kind, _ in points(kit)] == [Kind.SOFTWARE] * 2 + [Kind.HARDWARE] * 4
    assert (await described(kit))[0x1005] == "int3: every debug register is taken"
    fifth = next(point for point in kit.agent.table.values() if point.address == 0x1005)
    assert kit.engine.breakpoints.hit(fifth.id) == BreakpointHit(HARDWARE, Gva(0x1005))


async def test_an_int3_that_shall_be_in_a_register_stays_where_there_is_none(kit: Kit) -> None:
    kit.agent.debug_registers = 0
    await insert(kit, SOFTWARE, 0x1000)
    await insert(kit, HARDWARE, 0x1000)
    assert points(kit) == [(Kind.SOFTWARE, 0x1000)]
    assert (await described(kit))[0x1000] == "int3: every debug register is taken"


async def test_a_fifth_watchpoint_names_the_four(kit: Kit) -> None:
    for n in range(4):
        await insert(kit, WRITE if n else ACCESS, 0x5000 + 8 * n, 8)
    with pytest.raises(BreakpointError) as caught:
        await insert(kit, WRITE, 0x6000, 4)
    assert str(caught.value) == (
        "no debug register is left for a watchpoint at 0x6000, length 4: they are held by "
        "the access watchpoint at 0x5000, length 8, the write watchpoint at 0x5008, length 8, "
        "the write watchpoint at 0x5010, length 8 and the write watchpoint at 0x5018, length 8; "
        "remove one of them"
    )
    assert len(kit.agent.table) == 4


async def test_a_refused_watchpoint_leaves_nothing(kit: Kit) -> None:
    kit.agent.debug_registers = 2
    await insert(kit, WRITE, 0x5000, 1)
    with pytest.raises(BreakpointError, match="no debug register is left"):
        await insert(kit, WRITE, 0x5001, 3)
    assert points(kit) == [(Kind.WATCH_WRITE, 0x5000)]
    for length in (32, 2**63):
        with pytest.raises(BreakpointError, match="more than the 4 debug registers of a vCPU"):
            await insert(kit, WRITE, 0x5001, length)


def test_pieces_are_aligned_and_nothing_more() -> None:
    def cut(address: int, length: int) -> list[tuple[int, int]]:
        return [(p.address, p.length) for p in pieces(Gva(address), length)]

    assert cut(0x1000, 8) == [(0x1000, 8)]
    assert cut(0xFFD, 4) == [(0xFFD, 1), (0xFFE, 2), (0x1000, 1)]
    assert cut(0x1004, 16) == [(0x1004, 4), (0x1008, 8), (0x1010, 4)]


async def test_watchpoints_share_a_register(kit: Kit) -> None:
    specs = [await insert(kit, kind, 0x5000, 8) for kind in (READ, ACCESS)]
    (point,) = kit.agent.table
    stop = Stop(0, StopKind.WATCHED, point)
    hits = await kit.engine.breakpoints.watched(stop)
    assert hits == [WatchpointHit(ACCESS, Gva(0x5000))]
    for spec in specs:
        await kit.engine.breakpoints.remove(spec)
    assert points(kit) == []


async def test_a_write_is_no_hit_of_a_watchpoint_for_reads(kit: Kit) -> None:
    await insert(kit, READ, 0x5000, 8)
    (point,) = kit.agent.table
    regs = replace(kit.vcpus[1].regs, rdi=0x5000)
    kit.vcpus[1].regs = regs
    kit.agent.memory[0x0FF0:0x1010] = b"\x90" * 0x20
    kit.agent.memory[0x0FFD:0x1000] = bytes.fromhex("488907")  # mov [rdi],rax
    stop = Stop(1, StopKind.WATCHED, point)
    assert await kit.engine.breakpoints.watched(stop) == []
    kit.agent.memory[0x0FFD:0x1000] = bytes.fromhex("488b07")  # mov rax,[rdi]
    assert await kit.engine.breakpoints.watched(stop) == [WatchpointHit(READ, Gva(0x5000))]


# --- not yet, and never --------------------------------------------------------------------------


async def test_what_is_not_mapped_gets_a_register_or_waits(kit: Kit) -> None:
    kit.agent.debug_registers = 1
    await insert(kit, WRITE, 0x5000, 1)
    await insert(kit, SOFTWARE, UNMAPPED)
    texts = await described(kit)
    assert texts[UNMAPPED] == (
        "not armed, not armed: nothing is mapped there yet, and every debug register is taken"
    )
    kit.agent.memory.extend(bytes(0x20000))
    await kit.engine.execution._sites.refresh()
    assert points(kit) == [(Kind.SOFTWARE, UNMAPPED), (Kind.WATCH_WRITE, 0x5000)]


async def test_before_paging_a_register_is_taken(kit: Kit) -> None:
    for vcpu in kit.vcpus:
        vcpu.sregs = replace(LONG_MODE, cr0=0x11)
    await insert(kit, SOFTWARE, 0x1000)
    assert points(kit) == [(Kind.HARDWARE, 0x1000)]
    assert "paging is off" in (await described(kit))[0x1000]
    for vcpu in kit.vcpus:
        vcpu.sregs = LONG_MODE
    for n in range(4):
        await insert(kit, WRITE, 0x5000 + 8 * n, 8)
    assert points(kit)[0] == (Kind.SOFTWARE, 0x1000)


async def test_what_the_guest_overwrote_is_put_back(kit: Kit) -> None:
    await insert(kit, SOFTWARE, 0x1000)
    (point,) = kit.agent.table.values()
    kit.agent.table[point.id] = replace(point, state=PointState.OVERWRITTEN)
    assert "int3, not armed: the guest has overwritten it" in (await described(kit))[0x1000]
    await kit.engine.execution._sites.refresh()
    assert [p.state for p in kit.agent.table.values()] == [PointState.ARMED]


async def test_why_an_int3_is_out_is_said(kit: Kit) -> None:
    await insert(kit, SOFTWARE, 0x1000)
    (point,) = kit.agent.table.values()
    for state, why in {
        PointState.WITHDRAWN: "QEMU logs writes",
        PointState.YIELDED: "the guest patches its own code",
    }.items():
        kit.agent.table[point.id] = replace(point, state=state)
        assert f"int3, not armed: it is out while {why}" in (await described(kit))[0x1000]


async def test_without_int3_a_register_is_taken_or_it_is_refused() -> None:
    kit = Kit()
    await kit.open(Abilities(kernel_int3=False, kernel_watch=False))
    for n in range(4):
        await insert(kit, SOFTWARE, 0x1000 + n)
    assert {kind for kind, _ in points(kit)} == {Kind.HARDWARE}
    with pytest.raises(BreakpointError, match="hands us no int3 of the guest's kernel, and every"):
        await insert(kit, SOFTWARE, 0x2000)
    with pytest.raises(BreakpointError, match="held by the software breakpoint at 0x1000"):
        await insert(kit, HARDWARE, 0x2000)
    with pytest.raises(BreakpointError, match="does not tell us of what the guest's kernel writes"):
        await insert(kit, WRITE, 0xFFFF_FFFF_8100_0000, 8)
    assert [f.spec.address for f in await kit.engine.breakpoints.describe()] == [
        *(0x1000, 0x1001, 0x1002, 0x1003)
    ]
    kit.engine.abandon()
    await kit.agent.wait_end()


async def test_closing_takes_all_out(kit: Kit) -> None:
    await insert(kit, SOFTWARE, 0x1000)
    await insert(kit, WRITE, 0x5001, 3)
    table = kit.agent.table
    await kit.engine.breakpoints.clear()
    assert table == {}
    assert await kit.engine.breakpoints.describe() == []
