"""``--stdio``: RSP on our stdin and stdout, bridged to the owner's gdb socket.

For ``target remote | kvmdbg --vm NAME --stdio``, and for ssh. gdb sends its first packet again
after about two seconds without an acknowledgement and gives up soon after, while booting a VM (or
building its image) can take minutes: so the first packet is acknowledged here, at once, and the
acknowledgement that the server sends later is dropped.

Source: GDB manual, "Overview" of the remote serial protocol (packet acknowledgement).
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kvmdbg.errors import OwnerError, UsageError

LAST_WORDS = 1.0
"""Seconds for the server to answer what gdb said last."""

_CHUNK = 1 << 16


class FirstPacket:
    """Finds the end of the first packet in the bytes from gdb."""

    def __init__(self) -> None:
        self._seen = bytearray()

    def complete(self, data: bytes) -> bool:
        """Take more bytes; true as soon as a whole ``$…#xx`` has been seen."""
        self._seen += data
        start = self._seen.find(b"$")
        end = self._seen.find(b"#", start + 1) if start >= 0 else -1
        return end >= 0 and len(self._seen) >= end + 3


async def bridge(
    gdb_socket: Callable[[], Awaitable[Path]], stdin_file: BinaryIO, stdout_file: BinaryIO
) -> None:
    """Serve the gdb on two pipes (or one socket) until it closes its end, or the server does.

    ``gdb_socket`` is called and awaited while gdb's first packet is acknowledged. Raises OwnerError
    when the socket cannot be reached, UsageError where a file cannot be waited for.
    """
    _require_stream(stdin_file, "input")
    _require_stream(stdout_file, "output")
    async with _open_stdio(stdin_file, stdout_file) as (stdin, stdout):
        held = bytearray()
        greeting = asyncio.create_task(_acknowledge_first(stdin, stdout, held))
        try:
            path = await gdb_socket()
            acknowledged = await greeting
        finally:
            greeting.cancel()
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError as error:
            raise OwnerError(
                f"the RSP server does not answer on {path} ({error.strerror}): "
                "run the command again"
            ) from error
        writer.write(held)
        to_server = asyncio.create_task(_copy(stdin, writer))
        to_gdb = asyncio.create_task(_copy(reader, stdout, drop_acknowledgement=acknowledged))
        try:
            await asyncio.wait({to_server, to_gdb}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_server.cancel()
            await asyncio.gather(to_server, return_exceptions=True)
            if writer.can_write_eof():
                writer.write_eof()
            # The server's last words: a reply to D or k still on its way.
            await asyncio.wait({to_gdb}, timeout=LAST_WORDS)
            to_gdb.cancel()
            await asyncio.gather(to_gdb, return_exceptions=True)
            writer.close()


def _require_stream(file: BinaryIO, which: str) -> None:
    mode = os.fstat(file.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or file.isatty()):
        raise UsageError(
            f"--stdio is for a gdb at the other end of a pipe, and standard {which} is none: "
            "say target remote | kvmdbg --vm NAME --stdio in gdb"
        )


@asynccontextmanager
async def _open_stdio(
    stdin: BinaryIO, stdout: BinaryIO
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    if _is_one_socket(stdin, stdout):
        # As gdb makes it. A write pipe would take the bytes that arrive there for a hang-up.
        both = socket.socket(fileno=os.dup(stdin.fileno()))
        reader, writer = await asyncio.open_connection(sock=both)
        try:
            yield reader, writer
        finally:
            writer.close()
        return
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stdin)
    writing, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, stdout)
    try:
        yield reader, asyncio.StreamWriter(writing, protocol, None, loop)
    finally:
        reading.close()
        writing.close()


def _is_one_socket(one: BinaryIO, other: BinaryIO) -> bool:
    status = os.fstat(one.fileno())
    return stat.S_ISSOCK(status.st_mode) and os.path.samestat(status, os.fstat(other.fileno()))


async def _acknowledge_first(
    stdin: asyncio.StreamReader, stdout: asyncio.StreamWriter, held: bytearray
) -> bool:
    """Acknowledge the first packet, keeping all bytes in ``held``; false when gdb left first."""
    first = FirstPacket()
    while data := await stdin.read(_CHUNK):
        held += data
        if first.complete(data):
            stdout.write(b"+")
            await stdout.drain()
            return True
    return False


async def _copy(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    drop_acknowledgement: bool = False,
) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            if drop_acknowledgement:
                drop_acknowledgement = False
                data = data.removeprefix(b"+")
            writer.write(data)
            await writer.drain()
