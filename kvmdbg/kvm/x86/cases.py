"""What a KVM must do so that its guests can be debugged: x86 cases, as data.

They are those of the kernel's selftest tools/testing/selftests/kvm/x86/debug_regs.c, each on a
fresh guest, and a few of our own: ring 3, the resume flag, instructions that KVM must emulate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kvmdbg.kvm.exits import Debug, Exit, Io
from kvmdbg.kvm.listing import read_listing
from kvmdbg.kvm.suite import DONE, PASS, describe
from kvmdbg.kvm.system import check_extension
from kvmdbg.kvm.transport import Transport
from kvmdbg.kvm.x86.debug import (
    DR6_BD,
    DR6_BS,
    Access,
    Control,
    GuestDebug,
    HardwareBreakpoint,
    supported_control,
)
from kvmdbg.kvm.x86.guest import (
    CODE,
    DATA,
    DONE_PORT,
    RF,
    VECTOR_PORT,
    Guest,
    Mode,
    handled_vector,
    load,
)
from kvmdbg.kvm.x86.registers import get_regs, set_msrs, set_regs

BP_VECTOR, DB_VECTOR = 3, 1
IRQ_VECTOR = 0xAA

_DR6_CLEAR = 0xFFFF_0FF0
"""DR6 with nothing in it: bits that are always one, or zero where something happened."""

LONG_CODE = read_listing(
    CODE,
    f"""
    sw_bp:
        cc                      | int3
    hw_bp:
        90                      | nop
        e6 {DONE_PORT:x}        | out %al, ${DONE_PORT:#x}
    write:
        b8 d2 04 00 00          | mov $1234, %eax
        89 04 25 00 00 02 00    | mov %eax, {DATA:#x}
    written:
        e6 {DONE_PORT:x}        | out %al, ${DONE_PORT:#x}
    steps:
        fb                      | sti
    after_sti:
        31 c0                   | xor %eax, %eax
    after_xor:
        0f a2                   | cpuid
    after_cpuid:
        b9 e0 06 00 00          | mov $0x6e0, %ecx
    after_mov:
        0f 30                   | wrmsr
    after_wrmsr:
        fa                      | cli
    after_cli:
        0f 21 c0                | mov %db0, %rax
        e6 {DONE_PORT:x}        | out %al, ${DONE_PORT:#x}
    user_steps:
        31 c0                   | xor %eax, %eax
    user_after_xor:
        0f a2                   | cpuid
    user_after_cpuid:
        e6 {DONE_PORT:x}        | out %al, ${DONE_PORT:#x}
    cmpxchg16b:
        f0 48 0f c7 0c 25 00 00 02 00 | lock cmpxchg16b {DATA:#x}
        e6 {DONE_PORT:x}        | out %al, ${DONE_PORT:#x}
    irq:
        fb                      | sti
        b9 40 42 0f 00          | mov $1000000, %ecx
    loop:
        ff c9                   | dec %ecx
        75 fc                   | jnz loop
        e6 {DONE_PORT:x}        | out %al, ${DONE_PORT:#x}
    rdtsc:
        0f 31                   | rdtsc
        e7 {DONE_PORT:x}        | out %eax, ${DONE_PORT:#x}
        eb fa                   | jmp rdtsc
    """,
)
REAL_CODE = read_listing(
    0,
    f"""
    start:
        b0 2a                   | mov $42, %al
        e6 {DONE_PORT:x}        | out %al, ${DONE_PORT:#x}
    """,
)
KERNEL = Guest(Mode.KERNEL, LONG_CODE)
USER = Guest(Mode.USER, LONG_CODE)
REAL = Guest(Mode.REAL, REAL_CODE)


@dataclass(frozen=True)
class Step:
    """Tell KVM ``arm``, let the guest run, and see ``exit``; of Io, only the port counts.

    ``resume`` sets RFLAGS.RF first: the instruction at hand must not hit again.
    """

    arm: GuestDebug
    exit: Exit
    resume: bool = False


@dataclass(frozen=True)
class Case:
    """A fresh guest at ``entry``, and the steps it must take."""

    name: str
    guest: Guest
    entry: str
    steps: tuple[Step, ...]
    irq_pending: bool = False
    """Whether interrupt IRQ_VECTOR waits for the guest to enable interrupts."""

    @property
    def leaves_traces(self) -> bool:
        return self.irq_pending

    def run(self, vm: Transport) -> str:
        """PASS, or what happened instead. Raises IoctlError and KvmUnsupported."""
        supported = supported_control(
            vm.call(check_extension("KVM_CAP_SET_GUEST_DEBUG")),
            vm.call(check_extension("KVM_CAP_SET_GUEST_DEBUG2")),
        )
        load(vm, self.guest, self.entry)
        if self.irq_pending:
            _send_interrupt(vm)
        for at, step in enumerate(self.steps, start=1):
            vm.call(step.arm.ioctl(supported))
            if step.resume:
                regs = vm.call(get_regs())
                vm.call(set_regs(replace(regs, rflags=regs.rflags | RF)))
            found = _tell(self.guest, vm.run())
            if found != _tell(self.guest, step.exit):
                where = f"step {at}: " if len(self.steps) > 1 else ""
                return f"{where}{found}"
        return PASS


def _send_interrupt(vm: Transport) -> None:
    """Make IRQ_VECTOR pending in the local APIC, through its x2APIC registers."""
    msrs = {
        0x1B: 0xFEE0_0000 | 1 << 11 | 1 << 10 | 1 << 8,  # IA32_APIC_BASE: on, x2APIC, boot CPU
        0x80F: 0x1FF,  # spurious interrupt vector: on
        0x83F: IRQ_VECTOR,  # self IPI
    }
    vm.call(set_msrs(msrs))


def _tell(guest: Guest, exit: Exit) -> str:
    """An exit in words that are the same each time it happens."""
    match exit:
        case Io(port=port) if port == DONE_PORT:
            return DONE
        case Io(port=port, data=data) if port == VECTOR_PORT:
            return f"the guest got vector {data[0]}"
        case Debug(exception=exception, pc=pc, dr6=dr6):
            status = f" with dr6 {dr6:#x}" if exception == DB_VECTOR else ""
            vector = handled_vector(pc)
            place = guest.code.at(pc) if vector is None else f"the handler of vector {vector}"
            return f"debug exit {exception} at {place}{status}"
        case _:
            return describe(exit)


def _at(label: str) -> int:
    return LONG_CODE.symbols[label]


_OFF = GuestDebug()
_DONE = Io(DONE_PORT, 1, True, b"\0")
_IRQ_TAKEN = Io(VECTOR_PORT, 1, True, bytes([IRQ_VECTOR]))
_SOFTWARE = GuestDebug(Control.ENABLE | Control.USE_SW_BP)
_HARDWARE = Control.ENABLE | Control.USE_HW_BP
_STEP = GuestDebug(Control.ENABLE | Control.SINGLESTEP)
_STEP_BLOCKED = GuestDebug(Control.ENABLE | Control.SINGLESTEP | Control.BLOCKIRQ)


def _stepped(label: str) -> Debug:
    return Debug(DB_VECTOR, _at(label), _DR6_CLEAR | DR6_BS)


def _execute(index: int) -> GuestDebug:
    return GuestDebug(_HARDWARE, {index: HardwareBreakpoint(_at("hw_bp"))})


def _write(index: int) -> GuestDebug:
    return GuestDebug(_HARDWARE, {index: HardwareBreakpoint(DATA, Access.WRITE, 4)})


def _hit(index: int, label: str) -> Debug:
    return Debug(DB_VECTOR, _at(label), _DR6_CLEAR | 1 << index)


def _for_registers(
    prefix: str,
    guest: Guest,
    entry: str,
    arm: Callable[[int], GuestDebug],
    label: str,
) -> list[Case]:
    """A case for each of DR0 to DR3."""
    return [
        Case(f"{prefix}-dr{index}", guest, entry, (Step(arm(index), _hit(index, label)),))
        for index in range(4)
    ]


_INT3 = (Step(_SOFTWARE, Debug(BP_VECTOR, _at("sw_bp"))),)
_RESUME = (
    Step(_execute(0), _hit(0, "hw_bp")),
    Step(_execute(0), _DONE, resume=True),
)
_STEPS = ("after_sti", "after_xor", "after_cpuid", "after_mov", "after_wrmsr", "after_cli")

CASES: tuple[Case, ...] = (
    Case("real-mode", REAL, "start", (Step(_OFF, _DONE),)),
    Case("kernel-off", KERNEL, "hw_bp", (Step(_OFF, _DONE),)),
    Case("kernel-int3", KERNEL, "sw_bp", _INT3),
    *_for_registers("kernel-execute", KERNEL, "hw_bp", _execute, "hw_bp"),
    *_for_registers("kernel-write", KERNEL, "write", _write, "written"),
    Case(
        "kernel-step",
        KERNEL,
        "after_sti",
        tuple(Step(_STEP, _stepped(label)) for label in _STEPS[1:]),
    ),
    # That an interrupt is pending in the next case, and would be taken.
    Case("kernel-irq", KERNEL, "irq", (Step(_OFF, _IRQ_TAKEN),), irq_pending=True),
    Case(
        "kernel-step-blockirq",
        KERNEL,
        "steps",
        tuple(Step(_STEP_BLOCKED, _stepped(label)) for label in _STEPS),
        irq_pending=True,
    ),
    Case(
        "kernel-general-detect",
        KERNEL,
        "after_cli",
        (
            Step(
                GuestDebug(_HARDWARE, general_detect=True),
                Debug(DB_VECTOR, _at("after_cli"), _DR6_CLEAR | DR6_BD),
            ),
        ),
    ),
    # Control = 0 after all: what was armed before must be gone.
    Case(
        "kernel-disarmed",
        KERNEL,
        "hw_bp",
        (Step(_execute(0), _hit(0, "hw_bp")), Step(_OFF, _DONE)),
    ),
    Case("kernel-resume-flag", KERNEL, "hw_bp", _RESUME),
    Case("kernel-cmpxchg16b", KERNEL, "cmpxchg16b", (Step(_OFF, _DONE),)),
    Case("user-off", USER, "hw_bp", (Step(_OFF, _DONE),)),
    Case("user-int3", USER, "sw_bp", _INT3),
    *_for_registers("user-execute", USER, "hw_bp", _execute, "hw_bp"),
    *_for_registers("user-write", USER, "write", _write, "written"),
    Case(
        "user-step",
        USER,
        "user_steps",
        (Step(_STEP, _stepped("user_after_xor")), Step(_STEP, _stepped("user_after_cpuid"))),
    ),
    Case("user-resume-flag", USER, "hw_bp", _RESUME),
    Case("user-cmpxchg16b", USER, "cmpxchg16b", (Step(_OFF, _DONE),)),
)
