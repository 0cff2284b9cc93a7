"""Starting an owner, seen from both ends: a socket pair on which it reports until it is ready.

The client sends one :class:`StartRequest`; the owner sends reports, one JSON line each, and closes
after :class:`Ready` or :class:`Failed`. A client that goes away meanwhile cancels the start.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from kvmdbg.errors import OwnerError
from kvmdbg.owner.protocol import Failure
from kvmdbg.progress import Progress


class Launch(msgspec.Struct, frozen=True, tag=True):
    """Boot a definition. ``overrides``: keys of it that shall have other values."""

    definition: str
    name: str | None = None
    accel: str = "auto"
    engine: str = "auto"
    overrides: dict[str, Any] = {}
    record: str | None = None
    replay: str | None = None


class Attach(msgspec.Struct, frozen=True, tag=True):
    """Attach to the QEMU with this process id."""

    pid: int
    engine: str = "auto"


class TakeOver(msgspec.Struct, frozen=True, tag=True):
    """Take over a VM that kvmdbg booted and whose owner is no more; ``folder`` is the VM's."""

    folder: str


class StartRequest(msgspec.Struct, frozen=True):
    """What the new owner shall own. ``run``: let the VM run at once."""

    what: Launch | Attach | TakeOver
    keep: bool = False
    run: bool = False


class Step(msgspec.Struct, frozen=True, tag=True):
    """``Progress.step``."""

    what: str
    done: int
    total: int | None


class Note(msgspec.Struct, frozen=True, tag=True):
    """``Progress.note``."""

    text: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The owner serves its VM on this control socket."""

    control: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """There will be no owner."""

    failure: Failure


Report = Step | Note | Ready | Failed

_encoder = msgspec.json.Encoder()
_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
_requests = msgspec.json.Decoder(StartRequest)


class ReportChannel:
    """The owner's end; implements :class:`kvmdbg.progress.Progress`, from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    def read_request(self) -> StartRequest:
        """The request, which the client sends at once."""
        with self._sock.makefile("rb") as lines:
            return _requests.decode(lines.readline())

    async def wait_abandoned(self) -> None:
        """Return when the client has gone away."""
        self._sock.setblocking(False)
        while await self._loop.sock_recv(self._sock, 4096):
            pass

    def step(self, what: str, done: int = 0, total: int | None = None) -> None:
        self._send(Step(what, done, total))

    def note(self, text: str) -> None:
        self._send(Note(text))

    def finish(self, report: Ready | Failed) -> None:
        """The last report."""
        self._send(report)
        self._sock.close()

    def _send(self, report: Report) -> None:
        try:
            self._sock.sendall(_encoder.encode(report) + b"\n", socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass  # a client that does not read misses progress
        except OSError:
            pass  # it went away: wait_abandoned sees it


async def start_owner(request: StartRequest, log: Path, progress: Progress) -> Path:
    """Start a detached owner process and return its control socket once it is ready.

    Raises what the owner raised, or OwnerError when it died without a word.
    """
    ours, theirs = socket.socketpair()
    with theirs, log.open("ab") as log_file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kvmdbg.owner", str(theirs.fileno())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env=os.environ | {"PYTHONSAFEPATH": "1"},
        )
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        writer.write(_encoder.encode(request) + b"\n")
        await process.wait()  # it has forked: the owner itself is no child of ours
        while line := await reader.readline():
            match _reports.decode(line):
                case Step(what, done, total):
                    progress.step(what, done, total)
                case Note(text):
                    progress.note(text)
                case Ready(control):
                    return Path(control)
                case Failed(failure):
                    raise failure.exception()
    finally:
        writer.close()
    raise OwnerError(f"the VM's owner process died at start: its last words are in {log}")
