"""``kvmdbg --vm NAME console``: the guest's serial line on this terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

from kvmdbg.errors import NotRunning

DETACH_KEY = b"\x1d"
"""Ctrl-]: as telnet and virsh have it."""

_LOG_TAIL = 4096


async def run_console(socket: Path, log: Path | None) -> None:
    """Connect stdin and stdout to the serial line until the detach key, or its end.

    What the guest printed before (the end of ``log``) comes first. Raises NotRunning when the
    line cannot be reached; QEMU serves it to one client at a time.
    """
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_unix_connection(socket)
    except (OSError, TimeoutError) as error:
        raise NotRunning(
            f"the VM's serial line {socket} cannot be reached ({error}): "
            "is the VM running, and no other console on it?"
        ) from error
    print("kvmdbg: console; Ctrl-] detaches", file=sys.stderr)
    with _raw_terminal():
        if log is not None and log.exists():
            sys.stdout.buffer.write(log.read_bytes()[-_LOG_TAIL:])
            sys.stdout.buffer.flush()
        output = asyncio.create_task(_show(reader))
        typed = asyncio.create_task(_type(writer))
        await asyncio.wait({output, typed}, return_when=asyncio.FIRST_COMPLETED)
        for task in (output, typed):
            task.cancel()
        await asyncio.gather(output, typed, return_exceptions=True)
    writer.close()
    print("\nkvmdbg: console detached", file=sys.stderr)


async def _show(reader: asyncio.StreamReader) -> None:
    while data := await reader.read(4096):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


async def _open_stdin() -> asyncio.StreamReader:
    """Standard input, be it a terminal, a pipe or a file."""
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    if stat.S_ISREG(os.fstat(0).st_mode) or os.path.samestat(os.fstat(0), os.stat(os.devnull)):
        stdin.feed_data(sys.stdin.buffer.read())  # epoll takes neither
        stdin.feed_eof()
    else:
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stdin), os.fdopen(os.dup(0), "rb")
        )
    return stdin


async def _type(writer: asyncio.StreamWriter) -> None:
    stdin = await _open_stdin()
    while data := await stdin.read(1024):
        before, detach, _ = data.partition(DETACH_KEY)
        writer.write(before)
        await writer.drain()
        if detach:
            return
    # A script's input has ended: go on showing what the guest prints.
    await asyncio.get_running_loop().create_future()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too."""
    if not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what is typed ahead is for the guest
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)
