"""Commands on a terminal, for what they do differently there."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

TIMEOUT = 30.0


class Terminal:
    """A command on a terminal of its own; made by :func:`on_terminal`."""

    def __init__(self, process: asyncio.subprocess.Process, fd: int) -> None:
        self.process = process
        self.screen = b""
        self._seen = 0
        self._fd = fd
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            self.screen += os.read(self._fd, 4096)
        except OSError:  # the command has closed its end
            asyncio.get_running_loop().remove_reader(self._fd)
        self._changed.set()

    async def wait_for(self, text: bytes) -> None:
        """Wait for ``text``, behind what was waited for before."""
        try:
            async with asyncio.timeout(TIMEOUT):
                while (found := self.screen.find(text, self._seen)) < 0:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {text!r} on {self.screen[self._seen :]!r}") from None
        self._seen = found + len(text)

    async def wait_end(self) -> int:
        """Its exit status."""
        async with asyncio.timeout(TIMEOUT):
            return await self.process.wait()

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._fd, keys)


@asynccontextmanager
async def on_terminal(*command: str | Path) -> AsyncIterator[Terminal]:
    """Run a command on a new terminal, of which it is the session leader; killed afterwards."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its Ctrl-C is a signal then
        env=os.environ | {"TERM": "dumb"},
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
