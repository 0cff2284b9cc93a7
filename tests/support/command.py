"""The ``kvmdbg`` command, run as a user runs it."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_BESIDE = Path(sys.executable).with_name("kvmdbg")
KVMDBG = _BESIDE if _BESIDE.exists() else Path(shutil.which("kvmdbg") or _BESIDE)
TIMEOUT = 60.0
_numbers = itertools.count(1)


def fresh_name() -> str:
    """A VM name that no other test uses."""
    return f"c{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """Its only line on stderr, without our name."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"not one sentence: {self.err!r}"
        assert lines[0].startswith("kvmdbg: "), self.err
        assert not self.out, f"an error does not belong on stdout: {self.out!r}"
        return lines[0].removeprefix("kvmdbg: ")


async def run(*command: str | Path, timeout: float = TIMEOUT, cwd: Path | None = None) -> Finished:
    """Run a program to its end, without input."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


async def kvmdbg(
    *arguments: str | Path, timeout: float = TIMEOUT, cwd: Path | None = None
) -> Finished:
    """Run ``kvmdbg`` to its end."""
    return await run(KVMDBG, *arguments, timeout=timeout, cwd=cwd)


class Foreground:
    """A ``kvmdbg`` that stays; made by :func:`foreground`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        """What it has said."""
        self._arrived = asyncio.Condition()
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._arrived:
                self.lines.append(line.decode().rstrip("\n"))
                self._arrived.notify_all()
        async with self._arrived:
            self._arrived.notify_all()

    async def wait_line(self, text: str, timeout: float = TIMEOUT) -> str:
        """The first line with ``text`` in it."""
        async with asyncio.timeout(timeout), self._arrived:
            while not (found := [line for line in self.lines if text in line]):
                assert not self._pump.done(), f"it ended without {text!r}: {self.lines}"
                await self._arrived.wait()
        return found[0]

    def press_ctrl_c(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    async def wait_end(self, timeout: float = TIMEOUT) -> int:
        """Its exit status."""
        async with asyncio.timeout(timeout):
            status = await self.process.wait()
            await self._pump
        return status


@asynccontextmanager
async def foreground(*arguments: str | Path) -> AsyncIterator[Foreground]:
    """Run ``kvmdbg`` beside the test; killed afterwards if it still runs."""
    process = await asyncio.create_subprocess_exec(
        KVMDBG,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    running = Foreground(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await running.wait_end()
