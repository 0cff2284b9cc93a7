"""The private runtime folder: one folder per VM that we launched, one per owner process.

::

    vms/ID/         a VM that kvmdbg launched: vm.json, sockets, logs
    owners/PID-T/   the owner process of the QEMU with that pid and start time
    names/NAME.lock held while a VM of that name is being found or launched
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec

from kvmdbg.errors import RuntimeDirError
from kvmdbg.machine.processes import ProcessId

MAX_SOCKET_PATH = 104
"""Bytes; Linux takes 107 in sockaddr_un, other tools that may connect take less."""

_ID_NAME_LENGTH = 16  # of a VM's name in its id, so that paths stay short
_LONGEST = f"/vms/{'x' * _ID_NAME_LENGTH}-123456/console.sock"


class VmInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """The facts of a VM, for its owner and for ``ls``; ``vm.json`` holds them."""

    name: str
    process: ProcessId
    arch: str
    accel: str
    accel_reason: str
    engine: str
    cpus: int
    booted: bool
    """Launched by kvmdbg, not attached to."""
    on_kill: Literal["quit", "detach"]
    keep: bool = False
    orphan_timeout: float = 600.0
    """Seconds that a booted VM lives without any client."""
    definition: str | None = None
    vmlinux: str | None = None
    workload: str | None = None
    """ELF file of the demo's user program."""
    qemu_version: str = ""
    monitor: str | None = None
    """Unix socket of a QMP monitor that is left to others."""
    console: str | None = None
    """Unix socket of the serial console."""
    console_log: str | None = None
    qemu_log: str | None = None
    argv: tuple[str, ...] = ()
    recording: str | None = None
    """The file that the run is recorded to."""
    recorded_machine: dict[str, str] = {}
    """What is to be said there of the machine."""
    replay_end: int | None = None
    """In a replay, the number of the last instruction."""

    @property
    def pid(self) -> int:
        """QEMU's pid."""
        return self.process.pid


class VmFolder:
    """``vms/ID``: what belongs to one VM that kvmdbg launched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.qmp = path / "qmp.sock"
        self.monitor = path / "monitor.sock"
        self.stub = path / "stub.sock"
        self.agent = path / "agent.sock"
        self.console = path / "console.sock"
        self.console_log = path / "console.log"
        self.qemu_log = path / "qemu.log"
        self.info = path / "vm.json"

    def write(self, info: VmInfo) -> None:
        """Write ``vm.json``, whole or not at all."""
        part = self.info.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2))
        os.replace(part, self.info)

    def read(self) -> VmInfo | None:
        """The VM's facts; None while it is being launched or when the file is not ours."""
        try:
            return msgspec.json.decode(self.info.read_bytes(), type=VmInfo)
        except (OSError, msgspec.DecodeError):
            return None

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)


class OwnerFolder:
    """``owners/PID-T``: what belongs to the owner process of one QEMU."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "lock"
        self.control = path / "control.sock"
        self.gdb = path / "gdb.sock"
        self.stub = path / "stub.sock"
        """QEMU's own stub, where we attached and started it."""
        self.log = path / "owner.log"

    @property
    def process(self) -> ProcessId:
        """The QEMU that is owned."""
        return ProcessId.parse(self.path.name)


class FileLock:
    """An advisory lock that ends with its holder, however that ends. Source: flock(2)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody holds it; True when we hold it now."""
        assert self._fd is None, "held already"
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            if self._is_current(fd):
                os.utime(fd)  # for the sweep
                self._fd = fd
                return True
            os.close(fd)  # somebody swept the file away between open and flock

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go; without holding it, does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def held(self) -> bool:
        """True while we hold it."""
        return self._fd is not None


class RuntimeDir:
    """The runtime folder; :meth:`open` makes it and checks that it is private."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls) -> RuntimeDir:
        """Raises RuntimeDirError when it cannot be made, is not private, or has a long path."""
        path = default_path()
        if len(os.fsencode(path)) + len(_LONGEST) >= MAX_SOCKET_PATH:
            raise RuntimeDirError(
                f"the runtime folder {path} has too long a path for unix sockets: set "
                "XDG_RUNTIME_DIR to a folder with a short one"
            )
        for folder in (path, path / "vms", path / "owners", path / "names"):
            make_private(folder)
        return cls(path)

    def new_vm(self, name: str) -> VmFolder:
        """Make the folder of a VM that is about to be launched."""
        path = self.path / "vms" / f"{name[:_ID_NAME_LENGTH]}-{secrets.token_hex(3)}"
        make_private(path)
        return VmFolder(path)

    def vms(self) -> Iterator[tuple[VmFolder, VmInfo]]:
        """Every VM that kvmdbg launched and that lives."""
        for path in sorted((self.path / "vms").iterdir()):
            folder = VmFolder(path)
            info = folder.read()
            if info is not None and info.process.alive:
                yield folder, info

    def vm_of(self, process: ProcessId) -> tuple[VmFolder, VmInfo] | None:
        """The VM that kvmdbg launched as that QEMU; None for QEMUs that others launched."""
        for folder, info in self.vms():
            if info.process == process:
                return folder, info
        return None

    def owner(self, process: ProcessId) -> OwnerFolder:
        """The folder for the owner of a QEMU, made if it is not there."""
        path = self.path / "owners" / str(process)
        make_private(path)
        return OwnerFolder(path)

    def is_owned(self, process: ProcessId) -> bool:
        """True while an owner holds that QEMU; makes nothing."""
        lock = FileLock(OwnerFolder(self.path / "owners" / str(process)).lock)
        try:
            free = lock.acquire()
        except FileNotFoundError:
            return False  # never owned, or swept away just now
        lock.release()
        return not free

    def name_lock(self, name: str) -> FileLock:
        """Hold it while looking for a VM of that name in order to launch it if there is none."""
        return FileLock(self.path / "names" / f"{quote(name, safe='')}.lock")

    def sweep(self) -> None:
        """Remove what belongs to VMs and owners that are gone.

        A folder without ``vm.json`` belongs to a launch under way, unless it is old; a name that
        nobody looked for in the last hour needs no lock.
        """
        for path in (self.path / "vms").iterdir():
            folder = VmFolder(path)
            info = folder.read()
            if not info.process.alive if info is not None else _is_old(path):
                folder.remove()
        for path in (self.path / "owners").iterdir():
            owner = OwnerFolder(path)
            if not owner.process.alive:
                lock = FileLock(owner.lock)
                with contextlib.suppress(FileNotFoundError):  # another sweep was first
                    if lock.acquire():
                        shutil.rmtree(path, ignore_errors=True)
                        lock.release()
        for path in (self.path / "names").iterdir():
            lock = FileLock(path)
            if _is_old(path) and lock.acquire():
                path.unlink(missing_ok=True)
                lock.release()


def default_path() -> Path:
    """Where the runtime folder is.

    ``$XDG_RUNTIME_DIR/kvmdbg``; where that is unset or another user's (sudo keeps it), what it
    would be set to; else a folder of our uid's own in /run or the temporary folder.
    """
    uid = os.getuid()
    configured = os.environ.get("XDG_RUNTIME_DIR")
    if configured and not Path(configured).is_dir():
        raise RuntimeDirError(
            f"XDG_RUNTIME_DIR is {configured}, which is no folder: make it or unset the variable"
        )
    for base in (configured, f"/run/user/{uid}"):
        if base and os.path.isdir(base) and os.stat(base).st_uid == uid:
            return Path(os.path.abspath(base), "kvmdbg")
    base = "/run" if os.access("/run", os.W_OK) else tempfile.gettempdir()
    return Path(base, f"kvmdbg-{uid}")


def make_private(path: Path) -> None:
    """Make a folder that only we can enter, or check that it is one.

    Raises RuntimeDirError; a symlink that somebody planted in a shared folder is refused too.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise RuntimeDirError(
            f"cannot make the runtime folder {path}: {error.strerror}: set XDG_RUNTIME_DIR to a "
            "folder of your own"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise RuntimeDirError(
            f"the runtime folder {path} is not a folder of our own but a link or a file: remove it"
        )
    if found.st_uid != os.getuid():
        raise RuntimeDirError(
            f"the runtime folder {path} belongs to uid {found.st_uid}, not to us: remove it, or "
            "set XDG_RUNTIME_DIR"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        raise RuntimeDirError(
            f"the runtime folder {path} has mode {stat.S_IMODE(found.st_mode):04o}, so others can "
            f"enter it: chmod 700 it"
        )


def _is_old(path: Path) -> bool:
    hour = 3600.0
    try:
        return path.stat().st_mtime < time.time() - hour
    except FileNotFoundError:
        return False
