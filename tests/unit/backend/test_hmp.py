import re

from kvmdbg.addr import Gpa, Hva, VcpuIndex
from kvmdbg.backend import hmp
from kvmdbg.wire.structs import Slot, SlotNumber
from tests.support.fake_engine import FakeMonitor

MTREE = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "cpu-smm-0", root: memory
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram

FlatView #2
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @00000000c0000000
"""

REGISTERS = """\

CPU#0
RIP=ffffffff80200173 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
LDT=0000 0000000000000000 0000ffff 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008b00 DPL=0 TSS64-busy
GDT=     00000000000f01d0 0000001f
IDT=     ffffffff802001f6 0000020f
CR0=e0000013 CR2=0000000000000000 CR3=0000000000001000 CR4=00000220
DR0=0000000000000001 DR1=0000000000001234 DR2=0000000000000000 DR3=0000000000000000\x20
DR6=00000000ffff0ff0 DR7=0000000000000400

CPU#1
TR =0000 0000000000000007 0000ffff 00008b00 DPL=0 TSS64-busy
DR7=0000000000000500
"""


async def test_ram_is_what_the_flat_view_of_memory_says_of_its_backends() -> None:
    monitor = FakeMonitor()
    monitor.hmp_answers["info mtree -f"] = MTREE
    assert await hmp.memory_ranges(monitor, {"pc.ram"}) == [
        (Gpa(0), 0xA0000),
        (Gpa(0x100000), 0xBFF00000),
        (Gpa(0x100000000), 0x40000000),
    ]
    assert await hmp.memory_ranges(monitor, {"other"}) == []
    monitor.hmp_answers["info mtree -f"] = "nothing that is understood"
    assert await hmp.memory_ranges(monitor, {"pc.ram"}) == []


async def test_slots_are_what_was_given_to_kvm() -> None:
    monitor = FakeMonitor()
    monitor.hmp_answers["info mtree -f"] = MTREE
    monitor.qmp_answers["query-migrate"] = {}
    assert await hmp.memory_slots(monitor) == []
    for name in ("pc.ram", "pc.rom", "c0000000"):
        monitor.hmp_answers["info mtree -f"] = re.sub(
            rf"{name}$", f"{name} KVM", monitor.hmp_answers["info mtree -f"], flags=re.MULTILINE
        )
    for gpa, host in (
        (0, 0x7F00_0000_0000),
        (0xC0000, 0x7FAB_0000_0000),
        (1 << 32, 0x7F00_C000_0000),
    ):
        monitor.hmp_answers[f"gpa2hva {gpa:#x}"] = (
            f"Host virtual address for {gpa:#x} (pc.ram) is {host:#x}\r\n"
        )
    slots = [
        Slot(SlotNumber.UNNUMBERED, 0, 0, 0xA0000, 0x7F00_0000_0000),
        Slot(SlotNumber.UNNUMBERED + 1, 2, 0xC0000, 0x20000, 0x7FAB_0000_0000),
        Slot(SlotNumber.UNNUMBERED + 2, 0, 1 << 32, 0x40000000, 0x7F00_C000_0000),
    ]
    assert await hmp.memory_slots(monitor) == slots
    monitor.qmp_answers["query-migrate"] = {"status": "completed"}
    assert await hmp.memory_slots(monitor) == slots
    monitor.qmp_answers["query-migrate"] = {"status": "active"}
    assert [slot.flags for slot in await hmp.memory_slots(monitor)] == [1, 3, 1]
    monitor.hmp_answers["info mtree -f"] = "nothing that is understood"
    assert await hmp.memory_slots(monitor) == []


async def test_host_addresses() -> None:
    monitor = FakeMonitor()
    ram = "Host virtual address for 0x100000 (pc.ram) is 0x7fe6c1500000\r\n"
    monitor.hmp_answers["gpa2hva 0x100000"] = ram
    monitor.hmp_answers["gpa2hva 0xfee00000"] = "Memory at address 0xfee00000 is not RAM\r\n"
    assert await hmp.host_address(monitor, Gpa(0x100000)) == Hva(0x7FE6C1500000)
    assert await hmp.host_address(monitor, Gpa(0xFEE00000)) is None


async def test_system_registers_of_one_vcpu() -> None:
    monitor = FakeMonitor()
    monitor.hmp_answers["info registers -a"] = REGISTERS
    assert await hmp.system_registers(monitor, VcpuIndex(0)) == {
        "dr0": 1,
        "dr1": 0x1234,
        "dr2": 0,
        "dr3": 0,
        "dr6": 0xFFFF0FF0,
        "dr7": 0x400,
        "gdtr_base": 0xF01D0,
        "idtr_base": 0xFFFFFFFF802001F6,
        "ldtr_base": 0,
        "tr_base": 0xFFFFFE0000003000,
    }
    assert await hmp.system_registers(monitor, VcpuIndex(1)) == {"tr_base": 7, "dr7": 0x500}


async def test_a_monitor_that_does_not_know_has_no_registers() -> None:
    assert await hmp.system_registers(FakeMonitor(), VcpuIndex(0)) == {}


async def test_device_memory_is_read_by_words() -> None:
    monitor = FakeMonitor()
    monitor.hmp_answers["xp /2wx 0xfed00000"] = "00000000fed00000: 0x8086a201 0x00989680\r\n"
    read = hmp.physical_bytes
    assert await read(monitor, Gpa(0xFED00001), 5) == bytes.fromhex("a286808096")
    monitor.hmp_answers["xp /1wx 0xf0000000"] = "00000000f0000000: Cannot access memory\r\n"
    assert await read(monitor, Gpa(0xF0000000), 4) == b""
