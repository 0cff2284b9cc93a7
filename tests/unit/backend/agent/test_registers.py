"""Registers, between KVM's structs and the architecture's table."""

import struct
from dataclasses import replace

import pytest

from kvmdbg.addr import VcpuIndex
from kvmdbg.arch import X86_64
from kvmdbg.backend.agent.x86_state import MSRS, SOURCES
from kvmdbg.errors import RegisterError
from kvmdbg.kvm.x86.registers import Segment, Xsave

from .conftest import KERNEL_GS_BASE, Kit

ZERO, ONE = VcpuIndex(0), VcpuIndex(1)


async def value(kit: Kit, name: str, vcpu: VcpuIndex = ZERO) -> int:
    data = await kit.engine.registers.read_register(vcpu, X86_64.numbers[name])
    assert data is not None
    return int.from_bytes(data, "little")


async def write(kit: Kit, **values: int) -> None:
    numbers = {name: X86_64.numbers[name] for name in values}
    await kit.engine.registers.write_registers(
        ZERO,
        {
            number: values[name].to_bytes(X86_64.registers[number].size, "little")
            for name, number in numbers.items()
        },
    )


def test_every_register_has_one_source() -> None:
    names = [name for source in SOURCES for name in source.all_names]
    assert sorted(names) == sorted(register.name for register in X86_64.registers)


async def test_a_block_is_whole(kit: Kit) -> None:
    block = await kit.engine.registers.read_block(ONE)
    assert [len(value or b"") for value in block] == [r.size for r in X86_64.block]
    assert await value(kit, "k_gs_base") == KERNEL_GS_BASE
    assert await value(kit, "dr2") == 3


async def test_what_is_written_is_put_over_what_is_there(kit: Kit) -> None:
    kit.vcpus[0].regs = replace(kit.vcpus[0].regs, rbx=7)
    await write(kit, rax=5, eflags=0x246, cr3=0x4000, gs_base=0x1234)
    vcpu = kit.vcpus[0]
    assert (vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rflags) == (5, 7, 0x246)
    assert (vcpu.sregs.cr3, vcpu.sregs.gs.base, vcpu.sregs.cs.l) == (0x4000, 0x1234, 1)
    assert await value(kit, "rax") == 5
    assert kit.vcpus[1].regs.rax == 0


async def test_a_selector_is_a_base_in_real_mode_only(kit: Kit) -> None:
    await write(kit, ds=0x10)
    assert kit.vcpus[0].sregs.ds == Segment(selector=0x10)
    kit.vcpus[0].sregs = replace(kit.vcpus[0].sregs, cr0=0)
    kit.engine.registers.forget()
    await write(kit, ds=0x1234)
    assert kit.vcpus[0].sregs.ds == Segment(selector=0x1234, base=0x12340)


async def test_vectors_and_the_x87_stack(kit: Kit) -> None:
    await write(kit, xmm3=0x1122 << 100, mxcsr=0x1F80, st1=0x4000 << 64 | 1 << 63, fop=0x1AB)
    area = struct.pack("<1024I", *kit.vcpus[0].xsave.region)
    assert area[160 + 48 : 160 + 64] == (0x1122 << 100).to_bytes(16, "little")
    assert area[512] & 3 == 3, "else KVM takes no notice"
    assert await value(kit, "st1") == 0x4000 << 64 | 1 << 63
    assert await value(kit, "fop") == 0x1AB


async def test_the_tag_word_is_the_full_one(kit: Kit) -> None:
    area = bytearray(4096)
    area[2:4] = struct.pack("<H", 7 << 11)  # top of stack is register 7: st0
    area[4] = 0b1010_0001
    area[32:42] = (0x3FFF << 64 | 1 << 63).to_bytes(10, "little")  # st0, in 7: valid
    area[32 + 16 * 6 : 32 + 16 * 6 + 10] = (0x7FFF << 64).to_bytes(10, "little")  # st6, in 5
    kit.vcpus[0].xsave = Xsave(struct.unpack("<1024I", area))
    assert await value(kit, "ftag") == 0b00_11_10_11_11_11_11_01  # and st1, in 0, is zero
    await write(kit, ftag=0xFFFC)
    assert struct.pack("<1024I", *kit.vcpus[0].xsave.region)[4] == 1


async def test_msrs_are_there_as_far_as_kvm_knows_them(kit: Kit) -> None:
    number = X86_64.numbers["lstar"]
    assert await kit.engine.registers.read_register(ZERO, number) is None
    with pytest.raises(RegisterError, match=r"lstar cannot be written: KVM_SET_MSRS .*EINVAL"):
        await write(kit, lstar=0x1000)
    kit.vcpus[0].msrs |= dict.fromkeys(MSRS.values(), 5)
    kit.engine.registers.forget()
    assert await value(kit, "tsc_aux") == 5
    await write(kit, lstar=0x1000, k_gs_base=7)
    assert kit.vcpus[0].msrs[MSRS["lstar"]] == 0x1000
    assert await value(kit, "k_gs_base") == 7
    with pytest.raises(RegisterError, match="tsc can only be read"):
        await write(kit, tsc=1)


@pytest.mark.parametrize(
    ("number", "data", "words"),
    [
        (X86_64.numbers["rax"], b"\0", "has 8 bytes, not 1"),
        (X86_64.numbers["dr7"], bytes(8), "dr7 can only be read"),
        (9999, bytes(8), "there is no register 9999"),
    ],
)
async def test_what_cannot_be_written(kit: Kit, number: int, data: bytes, words: str) -> None:
    with pytest.raises(RegisterError, match=words):
        await kit.engine.registers.write_registers(ZERO, {number: data})


async def test_what_kvm_refuses_is_one_sentence(kit: Kit) -> None:
    kit.agent.ioctls.clear()
    with pytest.raises(RegisterError, match=r"vCPU 0 cannot be read: KVM_GET_REGS .* \(ENOTTY\)"):
        await kit.engine.registers.read_register(ZERO, 0)
