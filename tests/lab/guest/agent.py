"""Runs requests inside an L1: unpack a tree, run a command, pass its output and status on.

Stdlib only, and everything it needs is imported before the L1's state is saved.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import selectors
import shutil
import signal
import subprocess
import tarfile
import termios
import time
from pathlib import Path
from typing import Any

from tests.lab.channel import CHUNK, Decoder, Kind, encode

WORK = Path("/work")
RECONNECT = 0.02  # seconds; a port whose other end nobody holds reads as ended


class Port:
    """The virtio serial port."""

    def __init__(self) -> None:
        self.fd = os.open(next(Path("/dev").glob("vport*p*")), os.O_RDWR)
        self._decoder = Decoder()
        self._frames: list[tuple[Kind, bytes]] = []

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        data = memoryview(encode(kind, payload))
        while data:
            data = data[os.write(self.fd, data) :]

    def receive(self) -> tuple[Kind, bytes]:
        """The next frame; waits for it."""
        while not self._frames:
            self.read()
        return self._frames.pop(0)

    def read(self) -> None:
        """Wait for bytes, and keep the frames that they complete."""
        data = os.read(self.fd, CHUNK)
        if not data:
            time.sleep(RECONNECT)
        self._frames += self._decoder.feed(data)

    def take(self) -> list[tuple[Kind, bytes]]:
        """The frames that have been read and not received."""
        frames, self._frames = self._frames, []
        return frames


def unpack(port: Port, *, fresh: bool) -> None:
    """The tree that follows a request; ``fresh``: in place of the one that is there."""
    archive = io.BytesIO()
    while (frame := port.receive())[1]:
        archive.write(frame[1])
    if fresh and archive.tell():
        shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(exist_ok=True)
    if archive.tell():
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(WORK)


class Command:
    """A running command: on a terminal of its own, or on pipes."""

    def __init__(self, port: Port, request: dict[str, Any]) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._terminal = bool(request.get("terminal"))
        environment = {**ENVIRONMENT, **request["environment"]}
        arguments = ["bash", "-c", request["command"]] if request["command"] else ["bash", "-i"]
        if self._terminal:
            arguments = ["/lab/busybox/setsid", "-c", *arguments]
            main, side = os.openpty()
            stdin = stdout = stderr = side
            self._input: int | None = main
            self._watch(main, Kind.OUTPUT)
        else:
            pipes = [os.pipe(), os.pipe(), os.pipe()]
            stdin, stdout, stderr = pipes[0][0], pipes[1][1], pipes[2][1]
            self._input = pipes[0][1]
            self._watch(pipes[1][0], Kind.OUTPUT)
            self._watch(pipes[2][0], Kind.ERRORS)
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            arguments,
            cwd=WORK,
            env=environment,
            start_new_session=not self._terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        for fd in {stdin, stdout, stderr}:
            os.close(fd)

    def _watch(self, fd: int, kind: Kind) -> None:
        self._selector.register(fd, selectors.EVENT_READ, kind)

    def run(self) -> int:
        """Pass bytes both ways until it has ended; its status, 128 + N for signal N."""
        pidfd = os.pidfd_open(self.process.pid)
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._selector.register(self._port.fd, selectors.EVENT_READ)
        ended = False
        while True:
            # What it left running may hold its output open: only what is there by now counts.
            events = self._selector.select(0 if ended else None)
            if ended and not any(key.data for key, _ in events):
                break
            for key, _ in events:
                if key.fd == pidfd:
                    self._selector.unregister(pidfd)
                    ended = True
                elif key.fd == self._port.fd:
                    self._port.read()
                    for kind, payload in self._port.take():
                        self._control(kind, payload)
                else:
                    self._forward(key.fd, key.data)
        status: int = self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        os.close(pidfd)
        for key in list(self._selector.get_map().values()):
            if key.data:
                os.close(key.fd)
        if self._input is not None and not self._terminal:
            os.close(self._input)
        return status if status >= 0 else 128 - status

    def _forward(self, fd: int, kind: Kind) -> None:
        try:
            data = os.read(fd, CHUNK)
        except OSError:  # EIO: the last program on the terminal is gone
            data = b""
        if data:
            self._port.send(kind, data)
        else:
            self._selector.unregister(fd)
            if fd != self._input:
                os.close(fd)

    def _control(self, kind: Kind, payload: bytes) -> None:
        if self._input is None:
            return
        if kind is Kind.RESIZE:
            fcntl.ioctl(self._input, termios.TIOCSWINSZ, payload)
        elif kind is Kind.INPUT and payload:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._input, payload)
        elif kind is Kind.INPUT:
            os.close(self._input)
            self._input = None


def serve(port: Port) -> None:
    """One request."""
    kind, payload = port.receive()
    if kind is not Kind.REQUEST:
        return  # input that came too late for the command before
    request = json.loads(payload)
    time.clock_settime(time.CLOCK_REALTIME, request["time"])
    unpack(port, fresh=request["fresh"])
    status = Command(port, request).run()
    if request["file"]:
        path = WORK / request["file"]
        if path.is_file():
            content = path.read_bytes()
            for start in range(0, len(content), CHUNK):
                port.send(Kind.FILE, content[start : start + CHUNK])
    port.send(Kind.EXIT, str(status).encode())


ENVIRONMENT = {
    "HOME": "/root",
    "PATH": "/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/lab/busybox",
    "LANG": "C.UTF-8",
    "KVMDBG_CACHE": "/lab/cache",
    "KVMDBG_LAB": "l1",
    "PYTHONPATH": str(WORK),
    "XDG_RUNTIME_DIR": "/run",
}


def main() -> None:
    """Serve for ever."""
    port = Port()
    port.send(Kind.READY)
    while True:
        serve(port)
