"""From a name to a connection with the VM's owner, who is started where there is none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmdbg.errors import NotRunning, OwnerError, UsageError
from kvmdbg.machine.find import DefinedVm, RunningVm, look_up
from kvmdbg.machine.runtime import RuntimeDir
from kvmdbg.owner.client import OwnerClient
from kvmdbg.owner.protocol import Role
from kvmdbg.owner.start import Attach, Launch, StartRequest, TakeOver, start_owner
from kvmdbg.progress import Progress, SilentProgress

SETTLE_TIMEOUT = 60.0
"""Seconds to wait for another process that is starting, or ending, an owner of the same VM."""

_RETRY = 0.1


@dataclass(frozen=True)
class OpenOptions:
    """How a VM shall be opened; all but ``name`` matters only where it has to be started.

    ``name``: of this run, where the definition's is not wanted. ``overrides``: keys of the
    definition with other values.
    """

    accel: str = "auto"
    engine: str = "auto"
    name: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    run: bool = False
    keep: bool = False
    record: Path | None = None
    replay: Path | None = None

    def __post_init__(self) -> None:
        if self.record is not None and self.replay is not None:
            raise UsageError("a run can be recorded or be a replay, not both")
        if self.accel == "kvm" and (self.record is not None or self.replay is not None):
            raise UsageError(
                "--record and --replay need TCG, and --accel is kvm: under KVM no run can be "
                "recorded"
            )


async def open_owner(
    name: str,
    options: OpenOptions,
    progress: Progress,
    *,
    kind: str,
    role: Role = Role.USER,
) -> OwnerClient:
    """Connect to the owner of the VM ``name``, booting or attaching where need be.

    Raises VmNotFound, VmAmbiguous, and what can go wrong with starting.
    """
    return await _open(name, options, progress, kind, role, boots=True)


async def open_running(name: str, *, kind: str) -> OwnerClient:
    """Connect to a VM that runs already; boots nothing. Raises NotRunning."""
    return await _open(name, OpenOptions(), SilentProgress(), kind, Role.BRIDGE, boots=False)


async def _open(
    name: str, options: OpenOptions, progress: Progress, kind: str, role: Role, *, boots: bool
) -> OwnerClient:
    runtime = RuntimeDir.open()
    deadline = asyncio.get_running_loop().time() + SETTLE_TIMEOUT
    while True:
        found = await asyncio.to_thread(look_up, runtime, name, options.name)
        if isinstance(found, DefinedVm) and not boots:
            raise NotRunning(f"the VM {name} is not running: kvmdbg --vm {name} boots it")
        try:
            if isinstance(found, RunningVm):
                _check_still_applies(found, options)
                if client := await _connect_running(runtime, found, kind, role):
                    return client
            return await _start(runtime, found, options, progress, kind, role)
        except OwnerError:
            # Somebody else starts or ends an owner just now: look again, until that settles.
            if asyncio.get_running_loop().time() > deadline or not await _contended(
                runtime, found, options
            ):
                raise
        await asyncio.sleep(_RETRY)


def _check_still_applies(found: RunningVm, options: OpenOptions) -> None:
    """Options that only a boot could honour are refused, not ignored."""
    if options.accel not in ("auto", found.accel):
        why = f"the VM {found.name} runs already, under {found.accel}"
    elif options.overrides:
        why = f"the VM {found.name} runs already: its definition cannot be changed now"
    elif options.record is not None or options.replay is not None:
        why = f"the VM {found.name} runs already, and a recording has the beginning of a run"
    else:
        return
    if found.info is None:  # there need not be a definition, or not of this machine
        raise UsageError(f"{why}; kvmdbg did not boot it: leave the option out to attach to it")
    raise UsageError(f"{why}: end it first, or say --name to boot another one")


async def _connect_running(
    runtime: RuntimeDir, found: RunningVm, kind: str, role: Role
) -> OwnerClient | None:
    """A connection to the owner that ``found`` has; None where it has none."""
    if not runtime.is_owned(found.process):
        return None
    control = runtime.owner(found.process).control
    try:
        return await OwnerClient.connect(control, role=role, kind=kind)
    except OwnerError:
        if runtime.is_owned(found.process):
            raise
        return None  # it was killed just now


async def _contended(
    runtime: RuntimeDir, found: RunningVm | DefinedVm, options: OpenOptions
) -> bool:
    """True while another process holds what kept us from starting an owner, or has started one."""
    if isinstance(found, RunningVm):
        return runtime.is_owned(found.process) or not found.process.alive
    name = options.name or found.name
    lock = runtime.name_lock(name)
    free = lock.acquire()
    lock.release()
    return not free or any(info.name == name for _, info in runtime.vms())


async def _start(
    runtime: RuntimeDir,
    found: RunningVm | DefinedVm,
    options: OpenOptions,
    progress: Progress,
    kind: str,
    role: Role,
) -> OwnerClient:
    """Start an owner for ``found`` and connect to it."""
    match found:
        case DefinedVm(path=path):
            what: Launch | Attach | TakeOver = Launch(
                str(path),
                options.name,
                options.accel,
                options.engine,
                options.overrides,
                _absolute(options.record),
                _absolute(options.replay),
            )
            log = runtime.path / "start.log"
        case RunningVm(folder=str(folder)):
            what = TakeOver(folder)
            log = runtime.owner(found.process).log
        case _:
            what = Attach(found.pid, options.engine)
            log = runtime.owner(found.process).log
    request = StartRequest(what, keep=options.keep, run=options.run)
    control: Path = await start_owner(request, log, progress)
    client = await OwnerClient.connect(control, role=role, kind=kind)
    client.started = True
    return client


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
