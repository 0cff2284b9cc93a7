"""The state of an x86 vCPU: registers, MSRs, pending events, debug registers, XSAVE, CPUID."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kvmdbg.cstruct import decode_fields
from kvmdbg.kvm._abi import ffi, lib
from kvmdbg.kvm.ioctl import Ioctl, Scope, command, getter, setter
from kvmdbg.kvm.struct import Struct


@dataclass(frozen=True)
class Regs(Struct):
    """``struct kvm_regs``"""

    C_TYPE: ClassVar[str] = "struct kvm_regs"

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 0


@dataclass(frozen=True)
class Segment:
    """``struct kvm_segment``: a segment register with its hidden part; ``limit`` in bytes."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 (the kernel's and the manual's name)
    g: int = 0
    avl: int = 0
    unusable: int = 0


@dataclass(frozen=True)
class DescriptorTable:
    """``struct kvm_dtable``"""

    base: int = 0
    limit: int = 0


@dataclass(frozen=True)
class Sregs(Struct):
    """``struct kvm_sregs``"""

    C_TYPE: ClassVar[str] = "struct kvm_sregs"

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: tuple[int, ...]


@dataclass(frozen=True)
class DebugRegs(Struct):
    """``struct kvm_debugregs``: the guest's own, which KVM_GUESTDBG_USE_HW_BP suspends."""

    C_TYPE: ClassVar[str] = "struct kvm_debugregs"

    db: tuple[int, ...]
    dr6: int
    dr7: int
    flags: int = 0


@dataclass(frozen=True)
class ExceptionEvent:
    injected: int = 0
    nr: int = 0
    has_error_code: int = 0
    pending: int = 0
    error_code: int = 0


@dataclass(frozen=True)
class InterruptEvent:
    injected: int = 0
    nr: int = 0
    soft: int = 0
    shadow: int = 0


@dataclass(frozen=True)
class NmiEvent:
    injected: int = 0
    pending: int = 0
    masked: int = 0


@dataclass(frozen=True)
class SmiEvent:
    smm: int = 0
    pending: int = 0
    smm_inside_nmi: int = 0
    latched_init: int = 0


@dataclass(frozen=True)
class VcpuEvents(Struct):
    """``struct kvm_vcpu_events``: ``flags`` says which of the fields are meant."""

    C_TYPE: ClassVar[str] = "struct kvm_vcpu_events"

    exception: ExceptionEvent
    interrupt: InterruptEvent
    nmi: NmiEvent
    sipi_vector: int
    flags: int
    smi: SmiEvent
    exception_has_payload: int
    exception_payload: int


@dataclass(frozen=True)
class Xsave(Struct):
    """``struct kvm_xsave``: the XSAVE area, 4096 bytes, in the standard layout."""

    C_TYPE: ClassVar[str] = "struct kvm_xsave"

    region: tuple[int, ...]


@dataclass(frozen=True)
class MpState(Struct):
    """``struct kvm_mp_state``: 0 runnable, 3 halted, …"""

    C_TYPE: ClassVar[str] = "struct kvm_mp_state"

    mp_state: int


@dataclass(frozen=True)
class Translation(Struct):
    """``struct kvm_translation``: GVA to GPA; KVM says invalid for user pages under SMAP."""

    C_TYPE: ClassVar[str] = "struct kvm_translation"

    linear_address: int
    physical_address: int = 0
    valid: int = 0
    writeable: int = 0
    usermode: int = 0


@dataclass(frozen=True)
class CpuidEntry:
    """``struct kvm_cpuid_entry2``"""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def get_regs() -> Ioctl[Regs]:
    return getter("KVM_GET_REGS", Scope.VCPU, Regs)


def set_regs(regs: Regs) -> Ioctl[None]:
    return setter("KVM_SET_REGS", Scope.VCPU, regs)


def get_sregs() -> Ioctl[Sregs]:
    return getter("KVM_GET_SREGS", Scope.VCPU, Sregs)


def set_sregs(sregs: Sregs) -> Ioctl[None]:
    return setter("KVM_SET_SREGS", Scope.VCPU, sregs)


def get_debugregs() -> Ioctl[DebugRegs]:
    return getter("KVM_GET_DEBUGREGS", Scope.VCPU, DebugRegs)


def set_debugregs(debugregs: DebugRegs) -> Ioctl[None]:
    return setter("KVM_SET_DEBUGREGS", Scope.VCPU, debugregs)


def get_vcpu_events() -> Ioctl[VcpuEvents]:
    return getter("KVM_GET_VCPU_EVENTS", Scope.VCPU, VcpuEvents)


def set_vcpu_events(events: VcpuEvents) -> Ioctl[None]:
    return setter("KVM_SET_VCPU_EVENTS", Scope.VCPU, events)


def get_xsave() -> Ioctl[Xsave]:
    return getter("KVM_GET_XSAVE", Scope.VCPU, Xsave)


def set_xsave(xsave: Xsave) -> Ioctl[None]:
    return setter("KVM_SET_XSAVE", Scope.VCPU, xsave)


def get_mp_state() -> Ioctl[MpState]:
    return getter("KVM_GET_MP_STATE", Scope.VCPU, MpState)


def set_mp_state(state: MpState) -> Ioctl[None]:
    return setter("KVM_SET_MP_STATE", Scope.VCPU, state)


def translate(gva: int) -> Ioctl[Translation]:
    return Ioctl(
        "KVM_TRANSLATE",
        Scope.VCPU,
        Translation(gva).encode(),
        lambda result, data: Translation.decode(data),
    )


def get_tsc_khz() -> Ioctl[int]:
    """Frequency of the vCPU's TSC, in kHz."""
    return command("KVM_GET_TSC_KHZ", Scope.VCPU)


@dataclass(frozen=True)
class _DeviceAttr(Struct):
    """``struct kvm_device_attr``; whoever executes the ioctl fills in ``addr``."""

    C_TYPE: ClassVar[str] = "struct kvm_device_attr"

    group: int
    attr: int


def get_tsc_offset() -> Ioctl[int]:
    """What the vCPU's TSC is ahead of the host's, in cycles, modulo 2^64."""
    return Ioctl(
        "KVM_GET_DEVICE_ATTR",
        Scope.VCPU,
        _tsc_offset(),
        lambda result, data: int.from_bytes(data, "little"),
        pointee=bytes(8),
    )


def set_tsc_offset(cycles: int) -> Ioctl[None]:
    return Ioctl(
        "KVM_SET_DEVICE_ATTR",
        Scope.VCPU,
        _tsc_offset(),
        lambda result, data: None,
        pointee=(cycles % (1 << 64)).to_bytes(8, "little"),
    )


def _tsc_offset() -> bytes:
    return _DeviceAttr(lib.KVM_VCPU_TSC_CTRL, lib.KVM_VCPU_TSC_OFFSET).encode()


def get_msrs(indices: Iterable[int]) -> Ioctl[dict[int, int]]:
    """MSR index → value; of the first that KVM does not know and those after it, nothing."""

    def decode(result: int, data: bytes) -> dict[int, int]:
        msrs: Any = ffi.from_buffer("struct kvm_msrs *", data, False)
        return {msrs.entries[at].index: msrs.entries[at].data for at in range(result)}

    return Ioctl("KVM_GET_MSRS", Scope.VCPU, _msrs(dict.fromkeys(indices, 0)), decode)


def set_msrs(values: Mapping[int, int]) -> Ioctl[int]:
    """Set MSRs, in order. The answer is how many KVM took: it stops at the first it refuses."""
    return Ioctl("KVM_SET_MSRS", Scope.VCPU, _msrs(values), lambda result, data: result)


def _msrs(values: Mapping[int, int]) -> bytes:
    entries = [{"index": index, "data": data} for index, data in values.items()]
    return _counted("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})


def get_supported_cpuid(room: int = 256) -> Ioctl[tuple[CpuidEntry, ...]]:
    """What KVM can offer to a guest. ``room`` in entries; too little fails with E2BIG."""

    def decode(result: int, data: bytes) -> tuple[CpuidEntry, ...]:
        cpuid: Any = ffi.from_buffer("struct kvm_cpuid2 *", data, False)
        return tuple(decode_fields(CpuidEntry, cpuid.entries[at]) for at in range(cpuid.nent))

    return Ioctl("KVM_GET_SUPPORTED_CPUID", Scope.SYSTEM, _cpuid([{}] * room), decode)


def set_cpuid2(entries: Iterable[CpuidEntry]) -> Ioctl[None]:
    """Before the vCPU first runs."""
    encoded = _cpuid([vars(entry) for entry in entries])
    return Ioctl("KVM_SET_CPUID2", Scope.VCPU, encoded, lambda result, data: None)


def _cpuid(entries: list[dict[str, int]]) -> bytes:
    return _counted("struct kvm_cpuid2 *", {"nent": len(entries), "entries": entries})


def _counted(kind: str, value: dict[str, object]) -> bytes:
    """The bytes of a struct that ends in a flexible array."""
    struct = ffi.new(kind, value)
    return bytes(ffi.buffer(struct, ffi.sizeof(struct[0])))
