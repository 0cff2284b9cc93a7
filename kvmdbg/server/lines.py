"""Serial lines and pseudo-terminals, which carry RSP to one client after the other.

A serial line does not tell when a client goes or another comes: a conversation begins with the
first byte, and the next client is known by its greeting (:class:`~kvmdbg.rsp.server.session.Anew`).
The end of a pseudo-terminal tells when nobody has it open any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import struct
import termios
import tty
from collections.abc import Callable, Coroutine
from pathlib import Path

from kvmdbg.errors import ListenError
from kvmdbg.server.address import PtyAddress, SerialAddress
from kvmdbg.server.connection import Connection
from kvmdbg.server.linetransport import LineTransport

_LOOK = 0.1
"""Seconds between two looks whether a pseudo-terminal was opened: of that nobody tells."""

_FAREWELL = 2.0
"""Seconds for what a client that has left may still want to read."""

# include/uapi/asm-generic/ioctls.h
_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430


class Line:
    """An open terminal device in raw mode, nonblocking; made by :func:`open_line`."""

    def __init__(
        self, fd: int, name: str, undo: Callable[[], None], other_end: Path | None = None
    ) -> None:
        self.fd = fd
        self.name = name
        self._undo = undo
        self._other_end = other_end
        """Of a pseudo-terminal, which may be opened again and again."""

    async def wait_somebody(self) -> None:
        """Until somebody has sent something. Raises ListenError when the line is gone for good."""
        watched = select.poll()
        watched.register(self.fd, select.POLLIN)
        was_open = True
        while True:
            events = dict(watched.poll(0)).get(self.fd, 0)
            if events & ~select.POLLIN:
                if self._other_end is None:
                    raise ListenError(
                        f"{self.name} has hung up, and gdb is not served there any more: "
                        "start kvmdbg with --listen again when it is back"
                    )
                if was_open:
                    _forget_unread(self._other_end)
                was_open = False
                await asyncio.sleep(_LOOK)
            elif events:
                return
            else:
                was_open = True
                await _readable(self.fd)

    def close(self) -> None:
        """Leave the device as it was found."""
        self._undo()
        os.close(self.fd)


def open_line(address: PtyAddress | SerialAddress) -> tuple[Line, PtyAddress | SerialAddress]:
    """The line, and its address as it came out. Raises ListenError."""
    try:
        if isinstance(address, PtyAddress):
            return _open_pty(address)
        return _open_serial(address), address
    except FileExistsError as error:
        raise ListenError(
            f"cannot serve gdb on {address}: there is something of that name; choose another"
        ) from error
    except (OSError, termios.error) as error:
        reason = error.strerror if isinstance(error, OSError) else error.args[-1]
        raise ListenError(
            f"cannot serve gdb on {address}: {reason}; is it there, and may you use it?"
        ) from error


def _open_serial(address: SerialAddress) -> Line:
    fd = os.open(address.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        if not os.isatty(fd):
            raise ListenError(f"cannot serve gdb on {address}: it is no serial line")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ListenError(
                f"cannot serve gdb on {address}: another program uses the line"
            ) from None
        before = termios.tcgetattr(fd)
        tty.setraw(fd, termios.TCSANOW)
        attributes = termios.tcgetattr(fd)
        attributes[2] |= termios.CLOCAL | termios.CREAD
        if address.speed is not None:
            attributes[4] = attributes[5] = _speed(address)
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
        termios.tcflush(fd, termios.TCIOFLUSH)
    except BaseException:
        os.close(fd)
        raise

    def undo() -> None:
        with contextlib.suppress(termios.error):  # it may have gone
            termios.tcsetattr(fd, termios.TCSANOW, before)

    return Line(fd, str(address), undo)


def _speed(address: SerialAddress) -> int:
    speed: int | None = getattr(termios, f"B{address.speed}", None)
    if speed is None:
        raise ListenError(f"cannot serve gdb on {address}: no serial line has that speed")
    return speed


def _open_pty(address: PtyAddress) -> tuple[Line, PtyAddress]:
    """A new pseudo-terminal, which nobody but its owner could ever open."""
    fd = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        (number,) = struct.unpack("i", fcntl.ioctl(fd, _TIOCGPTN, bytes(4)))
        path = Path(f"/dev/pts/{number}")
        path.chmod(0o600)
        fcntl.ioctl(fd, _TIOCSPTLCK, struct.pack("i", 0))
        end = os.open(path, os.O_RDWR | os.O_NOCTTY)
        try:
            tty.setraw(end, termios.TCSANOW)
        finally:
            os.close(end)
        link = address.path
        if link is not None:
            _link(link, path)
    except BaseException:
        os.close(fd)
        raise

    def undo() -> None:
        if link is not None and link.is_symlink() and link.readlink() == path:
            link.unlink()

    found = address if link is not None else PtyAddress(path)
    return Line(fd, str(found), undo, path), found


def _link(link: Path, path: Path) -> None:
    """``link`` leads to ``path``; one that a kvmdbg left behind, which was killed, is replaced."""
    if link.is_symlink() and link.readlink().is_relative_to("/dev/pts"):
        link.unlink()
    link.symlink_to(path)


def _forget_unread(path: Path) -> None:
    """What the last client has not read is not for the next."""
    with contextlib.suppress(OSError, termios.error):
        end = os.open(path, os.O_RDWR | os.O_NOCTTY)
        try:
            termios.tcflush(end, termios.TCIOFLUSH)
        finally:
            os.close(end)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


class LineServer:
    """Serves whoever speaks on ``line``, one after the other, until closed or the line is gone.

    ``gone`` is called with the reason, a sentence, in the latter case.
    """

    def __init__(
        self,
        line: Line,
        serve: Callable[[Connection], Coroutine[None, None, None]],
        gone: Callable[[str], None],
    ) -> None:
        self._line = line
        self._serve = serve
        self._gone = gone
        self._task = asyncio.create_task(self._run(), name="rsp-line")

    async def _run(self) -> None:
        greeting = b""
        try:
            while True:
                if not greeting:
                    await self._line.wait_somebody()
                connection = Connection(self._serve, on_line=True)
                transport = LineTransport(self._line.fd, connection)
                if greeting:
                    connection.data_received(greeting)
                await connection.wait_served()
                await transport.wait_ended(_FAREWELL)
                greeting = connection.rsp.greeting
        except ListenError as error:
            self._gone(str(error))

    def stop(self) -> None:
        """Take no more clients; the one that is there is dropped by whoever serves it."""
        self._task.cancel()

    async def close(self) -> None:
        """Let go of the line, once nobody is served any more."""
        await asyncio.wait({self._task})
        self._line.close()
