"""What the instruction did that a debug register stopped after.

x86 can watch for writes, or for reads and writes; for reads alone the instruction has to tell. KVM
says where the vCPU stopped, which is after the instruction, and instructions can be decoded
forwards only: so every sequence of bytes that is one instruction and ends there is asked whether it
touches the watched bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from iced_x86 import (
    CodeSize,
    Decoder,
    DecoderOptions,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    Register,
    RegisterExt,
    UsedMemory,
)

from kvmdbg.kvm.x86.registers import Regs, Sregs

MAX_INSTRUCTION = 15  # bytes

_RFLAGS_DF = 1 << 10
_EFER_LMA = 1 << 10
_CR0_PE = 1

_READS = {
    OpAccess.READ,
    OpAccess.COND_READ,
    OpAccess.READ_WRITE,
    OpAccess.READ_COND_WRITE,
}
_WRITES = {OpAccess.WRITE, OpAccess.COND_WRITE}
_CHANGES = {
    *_WRITES,
    OpAccess.READ_WRITE,
    OpAccess.READ_COND_WRITE,
}

_ADDRESS_BITS = {CodeSize.CODE16: 16, CodeSize.CODE32: 32, CodeSize.CODE64: 64}

_NAMES: dict[int, str] = {
    getattr(Register, name.upper()): name
    for name in (
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
        *(f"r{number}" for number in range(8, 16)),
    )
}
_SEGMENTS: dict[int, str] = {
    getattr(Register, name.upper()): name for name in ("cs", "ss", "ds", "es", "fs", "gs")
}

_NONE, _RSP = int(Register.NONE), int(Register.RSP)
_INFO = InstructionInfoFactory()


def may_have_read(regs: Regs, sregs: Sregs, code: bytes, before: int, watched: range) -> bool:
    """False if the instruction that ended at ``regs.rip`` certainly read none of ``watched``.

    ``code`` holds the bytes around there, ``before`` of them in front of it; ``watched`` are
    linear addresses, one of which was accessed.
    """
    verdicts = [
        reads
        for instruction in _candidates(code, before, _bits(sregs), regs.rip)
        for touched, reads in _accesses(instruction, regs, sregs)
        if touched.start < watched.stop and watched.start < touched.stop
    ]
    return any(verdicts) or not verdicts


def _bits(sregs: Sregs) -> int:
    if sregs.efer & _EFER_LMA and sregs.cs.l:
        return 64
    return 32 if sregs.cs.db else 16


def _candidates(code: bytes, before: int, bits: int, pc: int) -> Iterator[Instruction]:
    """The instructions that may have been the last; a REP that has not finished starts at pc."""
    for length in range(min(before, MAX_INSTRUCTION), 0, -1):
        instruction = _decode(code[before - length : before], bits, pc - length)
        if instruction is not None and instruction.len == length:
            yield instruction
    repeated = _decode(code[before:], bits, pc)
    if repeated is not None and (repeated.has_rep_prefix or repeated.has_repne_prefix):
        yield repeated


def _decode(code: bytes, bits: int, address: int) -> Instruction | None:
    instruction = Decoder(bits, code, DecoderOptions.NONE, ip=address).decode()
    return None if instruction.is_invalid else instruction


def _accesses(instruction: Instruction, regs: Regs, sregs: Sregs) -> Iterator[tuple[range, bool]]:
    """The linear addresses that it touched, and whether it read there; those that can be told."""
    info = _INFO.info(instruction)
    changed: set[int] = {
        RegisterExt.full_register(used.register)
        for used in info.used_registers()
        if used.access in _CHANGES
    }
    element = MemorySizeExt.size(instruction.memory_size)
    for memory in info.used_memory():
        address = _address(memory, instruction, changed, element, regs, sregs)
        if address is not None and memory.access in _READS | _WRITES:
            size = MemorySizeExt.size(memory.memory_size) or element or 1
            yield range(address, address + size), memory.access in _READS


def _address(
    memory: UsedMemory,
    instruction: Instruction,
    changed: set[int],
    element: int,
    regs: Regs,
    sregs: Sregs,
) -> int | None:
    """Where it is, by registers that now hold what they held before; None if they do not."""
    offset = memory.displacement
    for register, scale in ((memory.base, 1), (memory.index, memory.scale)):
        if register == _NONE:
            continue
        full = int(RegisterExt.full_register(register))
        name = _NAMES.get(full)
        if name is None:
            return None
        value: int = getattr(regs, name)
        if full == _RSP:
            value -= instruction.stack_pointer_increment
        elif instruction.is_string_instruction and name in ("rsi", "rdi"):
            value += element if regs.rflags & _RFLAGS_DF else -element
        elif full in changed:
            return None
        offset += (value & (1 << 8 * RegisterExt.size(register)) - 1) * scale
    offset &= (1 << _ADDRESS_BITS[memory.address_size]) - 1
    return offset + _segment_base(memory.segment, sregs) & (1 << 64) - 1


def _segment_base(segment: int, sregs: Sregs) -> int:
    name = _SEGMENTS.get(segment)
    if name is None or (_bits(sregs) == 64 and name not in ("fs", "gs")):
        return 0
    base: int = getattr(sregs, name).base
    return base
