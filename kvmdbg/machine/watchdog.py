"""A process of its own that cleans up when the owner of a VM is killed.

Run as a file, ``python -I -S watchdog.py KIND SOCKET PID START_TIME LOCK ORPHAN_TIMEOUT FD``; it
imports little, so that it is there within 20 ms. FD is a pipe: ``bye`` says that the owner left in
good order, an end without it that it was killed. Then QEMU is made to let the guest run on: by its
stub, which first drops every breakpoint, or by its monitor where an agent inside QEMU takes out its
own. A VM that nobody takes over in ORPHAN_TIMEOUT seconds (0: ever) is ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import signal
import socket
import sys
import time

BY_STUB, BY_MONITOR = "stub", "monitor"
"""KIND: what SOCKET is."""

ABSTRACT = "@"
"""Stands for the NUL with which an abstract socket's path starts."""

RESCUE_TIMEOUT = 15.0
"""Seconds to try: QEMU may be busy, or not yet know that the owner has gone."""

ANSWER_TIMEOUT = 2.0
MOST_VCPUS = 255
DYING_TIMEOUT = 1.0
LOCK_INTERVAL = 2.0
"""Seconds between two looks whether somebody has taken over."""


class Stub:
    """Just enough of a client of QEMU's stub. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_TIMEOUT)
        self._socket.connect(path)
        self._unread = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, payload: bytes) -> None:
        """Send a packet and wait for its acknowledgement; what came before is old."""
        self._socket.sendall(b"$%b#%02x" % (payload, sum(payload) % 256))
        while True:
            _, plus, rest = self._unread.partition(b"+")
            if plus:
                self._unread = rest
                return
            self._receive()

    def reply(self) -> bytes:
        """Wait for a packet, and acknowledge it."""
        while True:
            start, end = self._unread.find(b"$"), self._unread.find(b"#")
            if 0 <= start < end and len(self._unread) >= end + 3:
                payload = self._unread[start + 1 : end]
                self._unread = self._unread[end + 3 :]
                self._socket.sendall(b"+")
                return payload
            self._receive()

    def interrupt(self) -> None:
        """Pause the guest."""
        self._socket.sendall(b"\x03")

    def _receive(self) -> None:
        data = self._socket.recv(4096)
        if not data:
            raise ConnectionResetError
        self._unread += data


def rescue_by_stub(path: str) -> None:
    """Leave the guest running without a trace of us. Connecting stops it. Raises OSError."""
    stub = Stub(path)
    try:
        stub.send(b"?")  # drops every breakpoint
        stub.reply()
        # A vCPU that was being single-stepped stays so, and would stop the VM again: let all
        # "step" with stepping off, until that stops nothing any more.
        stub.send(b"Qqemu.sstep=0")
        stub.reply()
        for _ in range(MOST_VCPUS):
            stub.send(b"vCont;s")
            time.sleep(0.01)
            stub.interrupt()
            # A VM that has shut down does not resume, so that nothing stops.
            with contextlib.suppress(TimeoutError):
                if stub.reply().startswith(b"T05"):
                    continue
            break
        stub.send(b"Qqemu.sstep=7")
        stub.reply()
        stub.send(b"D;1")  # the process counts where an earlier client spoke multiprocess
        stub.reply()
    finally:
        stub.close()


STOPPED = ("paused", "debug", "prelaunch")
"""Run states in which a debugger may have left the VM, and from which it runs on."""


def rescue_by_monitor(path: str) -> None:
    """Leave the guest running. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(ANSWER_TIMEOUT)
        monitor.connect(path.replace(ABSTRACT, "\0", 1) if path.startswith(ABSTRACT) else path)
        lines = monitor.makefile("rb")
        execute(monitor, lines, "qmp_capabilities")
        if execute(monitor, lines, "query-status").get("status") in STOPPED:
            execute(monitor, lines, "cont")


def execute(monitor: socket.socket, lines: io.BufferedReader, command: str) -> dict[str, object]:
    """A QMP command's result; an error's is empty. Raises OSError.

    Passed over: the greeting, events, and what QEMU had to say to the client that was killed, which
    it says to the next.
    """
    import json  # slow, and hardly ever needed

    monitor.sendall(json.dumps({"execute": command, "id": command}).encode() + b"\n")
    while line := lines.readline():
        said = json.loads(line)
        if said.get("id") == command and ("return" in said or "error" in said):
            result: dict[str, object] = said.get("return", {})
            return result
    raise ConnectionResetError


RESCUES = {BY_STUB: rescue_by_stub, BY_MONITOR: rescue_by_monitor}


class Qemu:
    """The QEMU process; :attr:`pidfd` is readable when it has ended."""

    def __init__(self, pid: int, start_time: int) -> None:
        """Raises OSError when it has ended."""
        self.pidfd = os.pidfd_open(pid)
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            # proc(5): field 22; the name, field 2, may hold anything.
            started = int(stat.read().rpartition(")")[2].split()[19])
        if started != start_time:
            raise ProcessLookupError

    def ends_within(self, seconds: float) -> bool:
        """Wait; True if it has ended."""
        return bool(select.select([self.pidfd], [], [], seconds)[0])

    def end(self) -> None:
        """As ``kill``: QEMU then writes back its disks and exits."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)


def owner_was_killed(fd: int, qemu: Qemu) -> bool:
    """Wait until the owner leaves or QEMU ends; True if there is something to clean up."""
    said = b""
    while True:
        ready = select.select([fd, qemu.pidfd], [], [])[0]
        if qemu.pidfd in ready:
            return False
        data = os.read(fd, 64)
        if not data:
            return b"bye" not in said
        said += data


def take_lock(path: str) -> int | None:
    """Become the owner, as far as others can see; None if there is one. Closing lets go."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def wait_lock(path: str) -> int | None:
    """As :func:`take_lock`, but the kernel is given time to let go for a process that dies: it
    closes files one by one, and ours may come before the lock."""
    deadline = time.monotonic() + DYING_TIMEOUT
    while (held := take_lock(path)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


def clean_up(kind: str, path: str, lock: str, qemu: Qemu) -> bool:
    """Rescue, again and again until it works; False if somebody else has taken over."""
    held = wait_lock(lock)
    if held is None:
        return False
    deadline = time.monotonic() + RESCUE_TIMEOUT
    try:
        while time.monotonic() < deadline:
            try:
                RESCUES[kind](path)
            except OSError:
                if qemu.ends_within(0.2):
                    break
            else:
                break
    finally:
        os.close(held)
    return True


def end_orphan(lock: str, qemu: Qemu, timeout: float) -> None:
    """End QEMU after ``timeout`` seconds, unless somebody takes it over."""
    deadline = time.monotonic() + timeout
    while not qemu.ends_within(min(LOCK_INTERVAL, max(0.0, deadline - time.monotonic()))):
        held = take_lock(lock)
        if held is None:
            return
        try:
            if time.monotonic() >= deadline:
                qemu.end()
                return
        finally:
            os.close(held)


def main(
    kind: str, path: str, pid: str, start_time: str, lock: str, orphan_timeout: str, fd: str
) -> None:
    """Guard one VM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        qemu = Qemu(int(pid), int(start_time))
        if not owner_was_killed(int(fd), qemu) or not clean_up(kind, path, lock, qemu):
            return
        if float(orphan_timeout) > 0:
            end_orphan(lock, qemu, float(orphan_timeout))
    except OSError:
        # QEMU has ended, or its runtime folder has been swept away: nothing is left to guard.
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
