import os

import pytest

from kvmdbg._native import ffi
from kvmdbg.addr import Gpa, Gva, Hva
from kvmdbg.arch import X86_64
from kvmdbg.backend.stub.memory import PageWalk
from kvmdbg.backend.stub.ram import DirectRam, Range
from tests.support.fake_engine import FakeMonitor
from tests.unit.backend.test_hmp import MTREE


def ram_in_this_process(data: bytearray, start: int = 0x100000) -> DirectRam:
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(data)))
    return DirectRam(os.getpid(), [Range(Gpa(start), len(data), Hva(address))])


def test_memory_is_read_from_a_process() -> None:
    data = bytearray(range(256))
    ram = ram_in_this_process(data)
    assert ram.read(Gpa(0x100000), 4) == b"\0\1\2\3"
    assert ram.read(Gpa(0x1000FE), 100) == b"\xfe\xff"
    assert ram.read(Gpa(0x100100), 1) == b""
    assert ram.read(Gpa(0xFFFFF), 1) == b""
    assert ram.refused is None


def test_memory_that_is_gone_is_left_to_the_stub() -> None:
    ram = DirectRam(os.getpid(), [Range(Gpa(0), 0x1000, Hva(0x10))])
    assert ram.read(Gpa(0), 8) == b""
    assert ram.refused is None


def test_a_refusal_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def read_process_memory(*_: object) -> int:
            return -1

    monkeypatch.setattr("kvmdbg.backend.stub.ram.lib", Refusing)
    ram = ram_in_this_process(bytearray(16))
    assert ram.holds(Gpa(0x100000))
    assert ram.read(Gpa(0x100000), 4) == b""
    assert ram.refused is not None
    assert "not permitted" in ram.refused
    assert not ram.holds(Gpa(0x100000))


async def test_what_can_move_is_left_out() -> None:
    monitor = FakeMonitor()
    monitor.qmp_answers["query-memdev"] = [{"id": "pc.ram"}]
    monitor.hmp_answers["info mtree -f"] = MTREE
    for start in (0, 0x100000, 0x100000000):
        monitor.hmp_answers[f"gpa2hva {start:#x}"] = f"Host virtual address is {start + 4096:#x}"
    ram = await DirectRam.find(monitor, 1)
    held = (0, 0x9FFFF, 0x100000, 0xBFFFFFFF, 0x100000000)
    moves = (0xA0000, 0xC0000, 0xFFFFF, 0xC0000000, 0xFD000000)
    assert all(ram.holds(Gpa(at)) for at in held)
    assert not any(ram.holds(Gpa(at)) for at in moves)


async def test_without_a_pid_or_a_map_the_reason_is_known() -> None:
    ram = await DirectRam.find(FakeMonitor(), 1)
    assert ram.refused == "QEMU does not say where its guest's RAM is"
    assert DirectRam(None, []).refused == "QEMU's process is not known"


def test_page_tables_are_read_once_until_forgotten() -> None:
    data = bytearray(0x4000)
    base = 0x100000
    for level, offset in ((0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000)):
        data[level : level + 8] = (base + offset | 3).to_bytes(8, "little")
    data[0x3000:0x3008] = (0x777000 | 3).to_bytes(8, "little")
    walk = PageWalk(X86_64, ram_in_this_process(data, base))
    controls = {"cr0": 1 << 31, "cr3": base, "cr4": 1 << 5, "efer": 0x500}
    assert walk.translate(controls, Gva(0x123)) == 0x777123
    assert walk.translate(controls, Gva(0x1000)) is None
    data[0x3000:0x3008] = (0x888000 | 3).to_bytes(8, "little")
    assert walk.translate(controls, Gva(0x123)) == 0x777123
    walk.forget()
    assert walk.translate(controls, Gva(0x123)) == 0x888123
    data[0:8] = (0x500000 | 3).to_bytes(8, "little")
    walk.forget()
    assert walk.translate(controls, Gva(0x123)) is None, "a table that is not in RAM"
