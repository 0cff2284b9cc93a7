"""Loading the agent into a QEMU that runs: its main thread is made to call dlopen().

The thread is stopped only where it waits for events: it holds no lock there, neither QEMU's nor
the allocator's. All of it happens in a process of its own (this module, run as a program), which a
killed kvmdbg does not take along: half an injection would be the end of QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from kvmdbg._native import ffi, lib
from kvmdbg.agent.process import Process
from kvmdbg.agent.symbols import find_symbol
from kvmdbg.errors import AttachError, KvmdbgError

ENTRY = "kvmdbg_agent_attach"
"""The function of agent.so that is called in QEMU: no arguments; a descriptor, or -errno."""

TIMEOUT = 60.0
"""Seconds for all of it, on a host that may be busy. Most go by without QEMU noticing."""
_STOP_LIMIT = 1000  # milliseconds
_CALL_LIMIT = 10_000
_PATIENCE = 5.0
"""Seconds in which QEMU's main thread has to come to wait for events."""
_NAP = 0.005

_SYSTEM_CALLS = {
    "x86_64": {7, 271},  # poll, ppoll
    "aarch64": {73},  # ppoll
}
_LIBC = re.compile(r"libc[.-].*so.*"), re.compile(r"libdl[.-].*so.*")
_RTLD_NOW = 2
_FAILED_CALLS = {
    errno.EFAULT: "it crashed there",
    errno.ETIMEDOUT: f"it did not come back within {_CALL_LIMIT // 1000} s",
    errno.ESRCH: "it ended meanwhile",
}


class Injection(msgspec.Struct, frozen=True):
    """What came of it: the agent's descriptor for us, in QEMU; how long QEMU stood still, in s."""

    descriptor: int
    pause: float


class _Outcome(msgspec.Struct):
    """What the child prints."""

    injection: Injection | None = None
    failure: str = ""


async def inject(pid: int, library: Path) -> Injection:
    """Load ``library`` into process ``pid`` and call its :data:`ENTRY`. Raises AttachError."""
    output = await asyncio.to_thread(_run_child, pid, library)
    if not output:
        raise AttachError(f"the agent could not be loaded into process {pid}: its loader died")
    outcome = msgspec.json.decode(output, type=_Outcome)
    if outcome.injection is None:
        raise AttachError(outcome.failure)
    return outcome.injection


def _run_child(pid: int, library: Path) -> bytes:
    """What the child prints. Whoever waits may be cancelled; the child must not be killed."""
    child = subprocess.Popen(
        [sys.executable, "-m", __name__, str(pid), library],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # out of the terminal's reach
    )
    try:
        return child.communicate(timeout=TIMEOUT)[0]
    except subprocess.TimeoutExpired:
        raise AttachError(
            f"the agent could not be loaded into process {pid} within {TIMEOUT:g} s: "
            "QEMU or the host hangs"
        ) from None


def main() -> None:
    """The child."""
    pid, library = int(sys.argv[1]), Path(sys.argv[2])
    try:
        outcome = _Outcome(inject_here(pid, library))
    except KvmdbgError as error:
        outcome = _Outcome(failure=str(error))
    with contextlib.suppress(BrokenPipeError):  # a killed kvmdbg does not listen
        os.write(sys.stdout.fileno(), msgspec.json.encode(outcome))


def inject_here(pid: int, library: Path) -> Injection:
    """As :func:`inject`, by this very thread."""
    process = Process(pid)
    require_traceable(process)
    require_visible(process, library)
    deadline = time.monotonic() + _PATIENCE
    while True:
        injection = _load_and_call(process, library)
        code = -injection.descriptor
        # An agent that has just been left may not have gone yet.
        if code != errno.EAGAIN or time.monotonic() > deadline:
            break
        time.sleep(_NAP)
    if code > 0:
        raise _cannot_start(process, code)
    return injection


def _load_and_call(process: Process, library: Path) -> Injection:
    dlopen, dlerror = (_libc_function(process, name) for name in ("dlopen", "dlerror"))
    with _waiting_thread(process) as thread:
        began = time.perf_counter()
        handle = thread.call(dlopen, thread.string(str(library)), _RTLD_NOW)
        if not handle:
            why = process.read_string(thread.call(dlerror))
            raise AttachError(f"QEMU (pid {process.pid}) cannot load the agent: {why}")
        # A handle is a struct link_map of link.h: the load address comes first.
        base = int.from_bytes(process.read(handle, 8), sys.byteorder)
        entry = find_symbol(process.read, base, ENTRY)
        if entry is None:
            raise AttachError(f"{library} has no {ENTRY}: it is not of this version of kvmdbg")
        result = thread.call(entry) & 0xFFFF_FFFF
    pause = time.perf_counter() - began
    return Injection(result if result < 1 << 31 else result - (1 << 32), pause)


def _cannot_start(process: Process, code: int) -> AttachError:
    why = os.strerror(code)
    if code == errno.EBUSY:
        why = "another kvmdbg is using it"
    elif code in (errno.EPERM, errno.EACCES, errno.ENOSYS) and process.status("Seccomp") == "2":
        why += ", which QEMU's seccomp filter (-sandbox) may be the reason of"
    return AttachError(f"the agent in QEMU (pid {process.pid}) cannot start: {why}")


# --- may we? -------------------------------------------------------------------------------------


def require_traceable(process: Process) -> None:
    """Raises AttachError where ptrace(2) is bound to fail, and says why."""
    who = f"process {process.pid} ({process.name})"
    tracer = int(process.status("TracerPid") or 0)
    if tracer:
        raise AttachError(
            f"{who} is being traced by process {tracer} ({Process(tracer).name}), and two cannot: "
            "end that one, or use --engine stub"
        )
    if process.status("State").startswith(("T", "Z", "X")):
        raise AttachError(f"{who} does not run: its state is {process.status('State')}")


def _refused(process: Process, code: int) -> AttachError:
    who = f"process {process.pid} ({process.name})"
    uid = int(process.status("Uid").split()[0])
    if code == errno.EPERM and os.geteuid() not in (0, uid):
        why = f"it belongs to uid {uid}: run kvmdbg as that user, or as root"
    elif code == errno.EPERM and _ptrace_scope() > 0:
        why = (
            f"kernel.yama.ptrace_scope is {_ptrace_scope()}: run kvmdbg as root, set it to 0, "
            "or start the VM with kvmdbg"
        )
    elif code == errno.EPERM:
        # Root is refused by a policy, or because somebody has begun to trace it just now.
        why = (
            "another process traces it just now, or the host's security policy forbids it: "
            "try again, or use --engine stub"
        )
    elif code == errno.EAGAIN:
        why = "a signal has stopped it: continue it first"
    elif code == errno.ENOTSUP:
        why = "it is no 64-bit process of this kind of processor"
    else:
        why = os.strerror(code)
    return AttachError(f"the agent cannot be loaded into {who}: {why}")


def _ptrace_scope() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except OSError:
        return 0


def require_visible(process: Process, library: Path) -> None:
    """Raises AttachError where the process would not find ``library`` under its path."""
    try:
        same = process.path_seen(library).samefile(library)
    except OSError:
        same = False
    if not same:
        raise AttachError(
            f"process {process.pid} ({process.name}) does not see {library}: it lives in a "
            "container or another mount namespace, which needs that file at the same place"
        )


def _libc_function(process: Process, name: str) -> int:
    bases = [base for library in _LIBC if (base := process.module(library)) is not None]
    if not bases:
        raise AttachError(
            f"process {process.pid} ({process.name}) is linked statically, or not with glibc: "
            "nothing can be loaded into it; use --engine stub"
        )
    for base in bases:
        address = find_symbol(process.read, base, name)
        if address is not None:
            return address
    raise AttachError(f"the C library of process {process.pid} has no {name}()")


# --- the thread ----------------------------------------------------------------------------------


@dataclass
class _Thread:
    """A stopped thread; as a context manager it runs on at the end as if nothing had been."""

    process: Process
    handle: Any
    stack: int

    def string(self, text: str) -> int:
        """Put a C string on the stack; its address."""
        data = os.fsencode(text) + b"\0"
        self.stack -= len(data)
        code = lib.remote_write(self.handle, self.stack, data, len(data))
        if code < 0:
            raise _refused(self.process, -code)
        return self.stack

    def call(self, function: int, a: int = 0, b: int = 0) -> int:
        """Call function(a, b) in the process; what it returned."""
        result = ffi.new("unsigned long long *")
        code = lib.remote_call(self.handle, function, a, b, self.stack, _CALL_LIMIT, result)
        if code < 0:
            why = _FAILED_CALLS.get(-code) or os.strerror(-code)
            raise AttachError(
                f"the agent could not be loaded into process {self.process.pid} "
                f"({self.process.name}): {why}"
            )
        return int(result[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        lib.remote_release(self.handle)


def _waiting_thread(process: Process) -> _Thread:
    """The main thread, stopped where it waits for events."""
    deadline = time.monotonic() + _PATIENCE
    wanted = _SYSTEM_CALLS[platform.machine()]
    while True:
        handle = ffi.new("struct remote_thread **")
        code = lib.remote_stop(process.pid, _STOP_LIMIT, handle)
        if code < 0:
            raise _refused(process, -code)
        if lib.remote_system_call(handle[0]) in wanted:
            return _Thread(process, handle[0], lib.remote_stack(handle[0]))
        lib.remote_release(handle[0])
        if time.monotonic() > deadline:
            raise AttachError(
                f"the main thread of process {process.pid} ({process.name}) does not wait for "
                f"events: it was busy for {_PATIENCE:g} s; try again"
            )
        time.sleep(_NAP)


if __name__ == "__main__":
    main()
