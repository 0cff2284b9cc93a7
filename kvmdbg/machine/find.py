"""Finding VMs: those that run, and those that are defined.

Everything here blocks for some milliseconds and wants a thread without an event loop
(see :mod:`kvmdbg.machine.sockets`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import msgspec
import platformdirs

from kvmdbg.errors import VmAmbiguous, VmNotFound
from kvmdbg.images import builtin_dir
from kvmdbg.machine.define import definition_name
from kvmdbg.machine.processes import (
    ProcessId,
    command_line,
    executable,
    owner_uid,
    pids,
    socket_inodes,
    working_directory,
)
from kvmdbg.machine.qemuargs import QemuCommand, arch_of, parse_command
from kvmdbg.machine.runtime import RuntimeDir, VmFolder, VmInfo
from kvmdbg.machine.sockets import UnixSockets, holder_of, survey

_SHOWN = 8  # candidates in an error

_Launched = dict[ProcessId, tuple[VmFolder, VmInfo]]


class MonitorSocket(msgspec.Struct, frozen=True):
    """A QMP monitor of a running QEMU; ``path`` of an abstract socket starts with a NUL."""

    path: str
    busy: bool = False
    client: int | None = None
    """Pid of the client that uses it, where that is visible."""


class RunningVm(msgspec.Struct, frozen=True):
    """A QEMU that runs."""

    name: str
    """Its ``-name``; ``pid:N`` where it has none."""
    process: ProcessId
    uid: int
    arch: str
    accel: str
    monitors: tuple[MonitorSocket, ...] = ()
    gdb: str | None = None
    """Device of QEMU's own stub, as its command line has it."""
    info: VmInfo | None = None
    """For a VM that kvmdbg launched."""
    folder: str | None = None
    """Its folder, likewise."""

    @property
    def pid(self) -> int:
        """QEMU's pid."""
        return self.process.pid


class DefinedVm(msgspec.Struct, frozen=True):
    """A definition, not read yet."""

    name: str
    path: Path


def list_vms(runtime: RuntimeDir) -> list[RunningVm]:
    """Every QEMU that we can see, those that kvmdbg launched first; sweeps stale folders."""
    runtime.sweep()
    launched = _launched(runtime)
    sockets = cache(survey)
    found = [vm for pid in pids() if (vm := _look_at(pid, launched, sockets))]
    return sorted(found, key=lambda vm: (vm.info is None, vm.name, vm.pid))


def running_vm(runtime: RuntimeDir, pid: int) -> RunningVm | None:
    """The QEMU with that pid; None when there is no such process or it is no QEMU."""
    launched = _launched(runtime)
    return _look_at(pid, launched, survey)


def _launched(runtime: RuntimeDir) -> _Launched:
    return {info.process: (folder, info) for folder, info in runtime.vms()}


def _look_at(pid: int, launched: _Launched, sockets: Callable[[], UnixSockets]) -> RunningVm | None:
    argv = command_line(pid)
    process = ProcessId.of(pid)
    uid = owner_uid(pid)
    if not argv or process is None or uid is None:
        return None
    arch = arch_of(executable(pid) or "") or arch_of(argv[0])
    if arch is None:
        return None
    command = parse_command(argv[1:], arch)
    folder, info = launched.get(process, (None, None))
    if info is None and any(_is_being_launched(Path(name).parent) for name in command.monitors):
        return None
    return RunningVm(
        name=command.name or f"pid:{pid}",
        process=process,
        uid=uid,
        arch=arch,
        accel=info.accel if info else command.accel,
        monitors=tuple(_monitors(pid, command, sockets())) if command.monitors else (),
        gdb=command.gdb,
        info=info,
        folder=str(folder.path) if folder else None,
    )


def _is_being_launched(folder: Path) -> bool:
    """True for the folder of a VM that a kvmdbg is launching and has not told of yet."""
    return folder.parent.name == "vms" and folder.is_dir() and not VmFolder(folder).info.exists()


def _monitors(pid: int, command: QemuCommand, sockets: UnixSockets) -> Iterator[MonitorSocket]:
    """Its monitors, but for those whose path has become somebody else's."""
    own = socket_inodes(pid)
    for name in command.monitors:
        listeners = sockets.listeners(name)
        if own and listeners and not listeners & own:
            continue
        client = sockets.client_of(name, own)
        path = name
        if not name.startswith(("/", "\0")):
            path = str((working_directory(pid) or Path()) / name)
        yield MonitorSocket(
            path,
            busy=client is not None,
            client=holder_of(client) if client else None,
        )


# --- definitions ---------------------------------------------------------------------------------


def list_definitions() -> list[DefinedVm]:
    """Every definition that a name can mean, in the order of lookup; an earlier one hides others.

    ``./NAME.toml``, a checkout's ``vm-images/NAME/vm.toml``, ``NAME.toml`` or ``NAME/vm.toml`` in
    the user's configuration folder, and kvmdbg's own.
    """
    found: dict[str, DefinedVm] = {}
    for path in _definition_files():
        name = definition_name(path)
        found.setdefault(name, DefinedVm(name, path))
    return list(found.values())


def _definition_files() -> Iterator[Path]:
    here = Path.cwd()
    # Other tools keep TOML files too (pyproject.toml): one of ours says what to boot.
    yield from (path for path in sorted(here.glob("*.toml")) if _is_definition(path))
    for folder in (here, *here.parents):
        if (folder / "vm-images").is_dir():
            yield from sorted(folder.glob("vm-images/*/vm.toml"))
            break
    config = platformdirs.user_config_path("kvmdbg")
    yield from sorted(config.glob("*.toml"))
    yield from sorted(config.glob("*/vm.toml"))
    yield from sorted(builtin_dir().glob("*/vm.toml"))


def _is_definition(path: Path) -> bool:
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return False
    keys = ("kernel", "disk", "extra_args")
    # What is no text is not TOML either: that is said of it.
    return "\ufffd" in text or any(line.lstrip().startswith(keys) for line in text.splitlines())


# --- lookup --------------------------------------------------------------------------------------


def look_up(runtime: RuntimeDir, name: str, instance: str | None = None) -> RunningVm | DefinedVm:
    """What ``name`` means: a running VM, else a definition.

    With ``instance`` the running VM has that name, and ``name`` is the definition's. A name with
    a slash or ending in ``.toml`` is the path of a definition. Raises VmNotFound, VmAmbiguous.
    """
    is_path = "/" in name or name.endswith(".toml")
    path = Path(name).absolute() if is_path else None
    running = find_running(runtime, instance or (definition_name(path) if path else name))
    if running is not None:
        if instance is not None and running.info is None:
            raise VmNotFound(
                f"{instance} is a QEMU that kvmdbg did not boot, no run of {name}: say another "
                f"--name, or --vm {instance} to debug that one"
            )
        return running
    if path is not None:
        if not path.is_file():
            raise VmNotFound(f"there is no VM definition {path}")
        return DefinedVm(definition_name(path), path)
    definitions = list_definitions()
    local = Path.cwd() / f"{name}.toml"
    if local.is_file():
        return DefinedVm(name, local)
    for definition in definitions:
        if definition.name == name:
            return definition
    if instance is not None and find_running(runtime, name) is not None:
        raise VmNotFound(
            f"{name} is a VM that runs, and --name is for runs of a definition: leave it out"
        )
    if name.startswith("pid:") and not name[4:].isdecimal():
        raise VmNotFound(f"{name} names no VM: pid: and a number is a QEMU, by its process id")
    if name.startswith("pid:"):
        raise VmNotFound(f"no QEMU runs with process id {name[4:]}: kvmdbg ls shows what runs")
    names = [vm.name for vm in list_vms(runtime)] + [d.name for d in definitions]
    raise VmNotFound(f"there is no VM and no definition named {name}: {_candidates(name, names)}")


def find_running(runtime: RuntimeDir, name: str) -> RunningVm | None:
    """The running VM of that name, or ``pid:N``. Raises VmAmbiguous."""
    if name.startswith("pid:"):
        return running_vm(runtime, int(name[4:])) if name[4:].isdecimal() else None
    found = [vm for vm in list_vms(runtime) if vm.name == name]
    if len(found) > 1:
        which = " or ".join(f"pid:{vm.pid}" for vm in found)
        raise VmAmbiguous(f"{len(found)} running VMs are named {name}: say {which}")
    return found[0] if found else None


def _candidates(name: str, names: Iterable[str]) -> str:
    """Half a sentence with the names, the closest first."""
    known = list(dict.fromkeys(names))
    if not known:
        return "none run and none is defined"
    close = difflib.get_close_matches(name, known, n=_SHOWN, cutoff=0.5)
    ordered = close + [other for other in known if other not in close]
    more = f" and {len(ordered) - _SHOWN} more (kvmdbg ls)" if len(ordered) > _SHOWN else ""
    return f"there are {', '.join(ordered[:_SHOWN])}{more}"
