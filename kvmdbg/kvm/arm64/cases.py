"""What a KVM must do so that its guests can be debugged: arm64 cases, as data.

After the kernel's selftest tools/testing/selftests/kvm/aarch64/debug-exceptions.c, seen from the
other side: there the guest debugs itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvmdbg.kvm.arm64.debug import (
    EC_BREAKPOINT,
    EC_BRK,
    EC_STEP,
    EC_WATCHPOINT,
    Control,
    GuestDebug,
)
from kvmdbg.kvm.arm64.guest import CODE, DATA, DONE_GPA, EL0, EL1, VECTOR_GPA, Guest, load
from kvmdbg.kvm.arm64.registers import PC, get_reg
from kvmdbg.kvm.exits import ArmDebug, Exit, Mmio
from kvmdbg.kvm.listing import read_listing
from kvmdbg.kvm.suite import DONE, PASS, describe
from kvmdbg.kvm.transport import Transport

# x1 is where the end is told, x2 the data, x3 the turns of the loop.
LISTING = read_listing(
    CODE,
    """
    sw_bp:
        00 00 20 d4 | brk #0
    hw_bp:
        1f 20 03 d5 | nop
        20 00 00 b9 | str w0, [x1]
    write:
        40 9a 80 52 | mov w0, #1234
    store:
        40 00 00 b9 | str w0, [x2]
        20 00 00 b9 | str w0, [x1]
    steps:
        1f 20 03 d5 | nop
    after_nop:
        00 00 80 d2 | mov x0, #0
    after_mov:
        40 00 40 b9 | ldr w0, [x2]
    after_ldr:
        04 00 00 14 | b after_branch
    loop:
        63 04 00 d1 | sub x3, x3, #1
        e3 ff ff b5 | cbnz x3, loop
        20 00 00 b9 | str w0, [x1]
    after_branch:
        20 00 00 b9 | str w0, [x1]
    """,
)
KERNEL = Guest(EL1, LISTING)
USER = Guest(EL0, LISTING)


@dataclass(frozen=True)
class Step:
    """Tell KVM ``arm``, let the guest run, and see what follows: :data:`DONE`, or :func:`_stop`."""

    arm: GuestDebug
    outcome: str


@dataclass(frozen=True)
class Case:
    """A fresh guest at ``entry``, and the steps it must take."""

    name: str
    guest: Guest
    entry: str
    steps: tuple[Step, ...]
    leaves_traces: bool = False

    def run(self, vm: Transport) -> str:
        """PASS, or what happened instead. Raises IoctlError."""
        load(vm, self.guest, self.entry)
        for at, step in enumerate(self.steps, start=1):
            vm.call(step.arm.ioctl())
            found = _tell(self.guest, vm, vm.run())
            if found != step.outcome:
                where = f"step {at}: " if len(self.steps) > 1 else ""
                return f"{where}{found}"
        return PASS


def _tell(guest: Guest, vm: Transport, exit: Exit) -> str:
    """An exit in words that are the same each time it happens."""
    match exit:
        case Mmio(gpa=gpa) if gpa == DONE_GPA:
            return DONE
        case Mmio(gpa=gpa, data=data) if gpa == VECTOR_GPA:
            return f"the guest got vector {data[0]}"
        case ArmDebug(hsr=hsr, far=far):
            stopped_by = hsr >> 26
            touched = far if stopped_by == EC_WATCHPOINT else None
            return _stop(stopped_by, guest.code.at(vm.call(get_reg(PC))), touched)
        case _:
            return describe(exit)


def _stop(stopped_by: int, label: str, touched: int | None = None) -> str:
    """A debug exit in words; ``stopped_by`` is an exception class, ``touched`` a GVA."""
    data = f", data {touched:#x}" if touched is not None else ""
    return f"debug exit {stopped_by:#x} at {label}{data}"


_OFF = GuestDebug()
_SOFTWARE = GuestDebug(Control.ENABLE | Control.USE_SW_BP)
_STEP = GuestDebug(Control.ENABLE | Control.SINGLESTEP)
_HARDWARE = Control.ENABLE | Control.USE_HW


def _execute(index: int) -> Step:
    armed = GuestDebug(_HARDWARE, breakpoints={index: LISTING.symbols["hw_bp"]})
    return Step(armed, _stop(EC_BREAKPOINT, "hw_bp"))


def _write(index: int) -> Step:
    """A watchpoint hits *before* the store, on arm64."""
    return Step(
        GuestDebug(_HARDWARE, watchpoints={index: DATA}), _stop(EC_WATCHPOINT, "store", DATA)
    )


def _for_registers(
    prefix: str, guest: Guest, entry: str, step: Callable[[int], Step]
) -> list[Case]:
    """A case for each of the first four registers; some processors have no more."""
    return [Case(f"{prefix}-{index}", guest, entry, (step(index),)) for index in range(4)]


_STEPS = ("after_nop", "after_mov", "after_ldr", "after_branch")


def _cases(prefix: str, guest: Guest) -> list[Case]:
    return [
        Case(f"{prefix}-off", guest, "hw_bp", (Step(_OFF, DONE),)),
        Case(f"{prefix}-brk", guest, "sw_bp", (Step(_SOFTWARE, _stop(EC_BRK, "sw_bp")),)),
        *_for_registers(f"{prefix}-execute", guest, "hw_bp", _execute),
        *_for_registers(f"{prefix}-write", guest, "write", _write),
        Case(
            f"{prefix}-step",
            guest,
            "steps",
            tuple(Step(_STEP, _stop(EC_STEP, label)) for label in _STEPS),
        ),
    ]


CASES: tuple[Case, ...] = (
    *_cases("kernel", KERNEL),
    Case("kernel-disarmed", KERNEL, "hw_bp", (_execute(0), Step(_OFF, DONE))),
    *_cases("user", USER),
)
