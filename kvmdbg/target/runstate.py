"""Run states of the VM, by QEMU's names, and the one table that says what each allows.

Source: QEMU's ``qapi/run-state.json`` (RunState, and the events of the same file).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class VmRunState(Enum):
    """QEMU's RunState; the value is its QMP spelling. GONE is ours: the QEMU process ended."""

    PRELAUNCH = "prelaunch"
    RUNNING = "running"
    PAUSED = "paused"
    DEBUG = "debug"
    SUSPENDED = "suspended"
    SHUTDOWN = "shutdown"
    GUEST_PANICKED = "guest-panicked"
    WATCHDOG = "watchdog"
    IO_ERROR = "io-error"
    INTERNAL_ERROR = "internal-error"
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    SAVE_VM = "save-vm"
    RESTORE_VM = "restore-vm"
    COLO = "colo"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Permits:
    """What a run state allows.

    ``executing``: guest instructions may run; ``resumable``: ``cont`` leads back to running;
    ``inspectable``: registers and memory are stable and may be read.
    """

    executing: bool
    resumable: bool
    inspectable: bool


_EXECUTING = Permits(executing=True, resumable=False, inspectable=False)
_STOPPED = Permits(executing=False, resumable=True, inspectable=True)
_DEAD_END = Permits(executing=False, resumable=False, inspectable=True)
_TRANSIENT = Permits(executing=False, resumable=False, inspectable=False)

PERMITS: dict[VmRunState, Permits] = {
    VmRunState.PRELAUNCH: _STOPPED,
    VmRunState.RUNNING: _EXECUTING,
    VmRunState.PAUSED: _STOPPED,
    VmRunState.DEBUG: _STOPPED,
    # Guest in S3: its vCPUs sit halted, and only a wake-up event makes it run.
    VmRunState.SUSPENDED: _EXECUTING,
    VmRunState.SHUTDOWN: _DEAD_END,
    VmRunState.GUEST_PANICKED: _DEAD_END,
    VmRunState.WATCHDOG: _STOPPED,
    VmRunState.IO_ERROR: _STOPPED,
    VmRunState.INTERNAL_ERROR: _DEAD_END,
    VmRunState.INMIGRATE: _TRANSIENT,
    VmRunState.FINISH_MIGRATE: _TRANSIENT,
    VmRunState.POSTMIGRATE: _STOPPED,
    VmRunState.SAVE_VM: _TRANSIENT,
    VmRunState.RESTORE_VM: _TRANSIENT,
    VmRunState.COLO: _EXECUTING,
    VmRunState.GONE: Permits(executing=False, resumable=False, inspectable=False),
}


class RunEvent(Enum):
    """What QEMU tells about the VM unasked; the value is the QMP event, GONE is ours."""

    STOP = "STOP"
    RESUME = "RESUME"
    RESET = "RESET"
    SUSPEND = "SUSPEND"
    WAKEUP = "WAKEUP"
    SHUTDOWN = "SHUTDOWN"
    POWERDOWN = "POWERDOWN"
    GUEST_PANICKED = "GUEST_PANICKED"
    WATCHDOG = "WATCHDOG"
    GONE = "GONE"


NEXT: dict[RunEvent, VmRunState | None] = {
    # A STOP does not say which stopped state it led to: None means "ask query-status".
    RunEvent.STOP: None,
    RunEvent.RESUME: VmRunState.RUNNING,
    RunEvent.SUSPEND: VmRunState.SUSPENDED,
    RunEvent.WAKEUP: VmRunState.RUNNING,
    RunEvent.GONE: VmRunState.GONE,
    # These announce what happened; where it changes the state, a STOP or an exit follows.
    RunEvent.RESET: None,
    RunEvent.SHUTDOWN: None,
    RunEvent.POWERDOWN: None,
    RunEvent.GUEST_PANICKED: None,
    RunEvent.WATCHDOG: None,
}
"""The state that each event leads to, or None where only ``query-status`` knows."""
