"""A real lldb, driven over its command line as a user drives it."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.recording import Recorded, new_log

COMMAND_TIMEOUT = 60.0

LLDB_14 = "lldb"
"""Debian's."""

LLDB_23 = str(Path(sys.prefix, "lldb23", "bin", "lldb"))
"""A newer one, from PyPI; ``make setup`` puts it where no PATH finds it."""

_PACKETS_SHOWN, _CHARACTERS_SHOWN = 100, 200
"""Of a failed test."""

_PROMPT = "(lldb) "
_STOP = re.compile(
    r"^Process 1 stopped\n\* thread #(?P<thread>\d+)[^\n]*, stop reason = (?P<reason>[^\n]*)\n"
    r"\s*frame #0: (?P<pc>0x[0-9a-f]+)",
    re.MULTILINE,
)


class LldbError(Exception):
    """lldb printed ``error:``; the text is what followed."""


@dataclass(frozen=True)
class LldbStop:
    """A stop as lldb shows it; ``thread`` is lldb's own index, counted from 1."""

    thread: int
    reason: str
    pc: int


class Lldb:
    """One lldb process; made by :func:`start_lldb`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.text = ""
        """All that the user would have seen."""
        self._stops_seen = 0
        self._marks = itertools.count(1)
        self._arrived = asyncio.Event()
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(1 << 16):
            self.text += data.decode(errors="replace")
            self._arrived.set()
        self._arrived.set()

    async def _more(self) -> None:
        """Wait until lldb prints something."""
        self._arrived.clear()
        await self._arrived.wait()
        if self._pump.done():
            raise LldbError(f"lldb has ended: {self.text[-500:]}")

    async def cli(self, command: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a command and return what it printed. Raises LldbError."""
        # What lldb says of a command that does not exist tells where the output of ours ends.
        mark = f"mark{next(self._marks)}"
        start = len(self.text)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n{mark}\n".encode())
        async with asyncio.timeout(timeout):
            while f"'{mark}' is not a valid command" not in self.text[start:]:
                await self._more()
        printed = self.text[start:].partition(f"{_PROMPT}{mark}")[0]
        printed = printed.partition(f"{command}\n")[2]
        if error := re.search(r"^error: (.*)", printed, re.MULTILINE):
            raise LldbError(error[1])
        return printed

    async def wait_stopped(self, timeout: float = COMMAND_TIMEOUT) -> LldbStop:
        """The next stop that nobody has waited for."""
        async with asyncio.timeout(timeout):
            while (found := _STOP.search(self.text, self._stops_seen)) is None:
                await self._more()
        self._stops_seen = found.end()
        return LldbStop(int(found["thread"]), found["reason"], int(found["pc"], 0))

    async def run(self, command: str, timeout: float = COMMAND_TIMEOUT) -> LldbStop:
        """Give a command that lets the VM run; the stop that follows."""
        await self.cli(command, timeout)
        return await self.wait_stopped(timeout)

    async def select(self, thread: int, timeout: float = COMMAND_TIMEOUT) -> None:
        """``thread select``, until lldb has shown where the thread is: one of lldb's own threads
        does that, any time later. If the VM has gone on by then, what it reads is what lldb shows
        for the next stop."""
        start = len(self.text)
        shown = re.compile(rf"^\* thread #{thread}\b[^\n]*\n\s*frame #0: .*\n", re.MULTILINE)
        await self.cli(f"thread select {thread}", timeout)
        async with asyncio.timeout(timeout):
            while not shown.search(self.text, start):
                await self._more()

    async def register(self, name: str) -> int:
        """A register's value."""
        found = re.search(rf"{name} = (0x[0-9a-f]+)", await self.cli(f"register read {name}"))
        assert found
        return int(found[1], 0)

    async def close(self) -> None:
        """End lldb without its saying anything to the target."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._pump


@asynccontextmanager
async def start_lldb(lldb: str, program: Path | None = None) -> AsyncIterator[Lldb]:
    """Start lldb on a symbol file; killed afterwards."""
    environment = os.environ | {"DEBUGINFOD_URLS": ""}
    if lldb == LLDB_23:
        environment["PYTHONPATH"] = str(Path(lldb).parents[1])
    process = await asyncio.create_subprocess_exec(
        *(lldb, "--no-lldbinit"),
        *([str(program)] if program else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        env=environment,
    )
    session = Lldb(process)
    with tempfile.TemporaryDirectory() as scratch:
        recorded = Recorded.LLDB_23 if lldb == LLDB_23 else Recorded.LLDB_14
        log = new_log(recorded) or Path(scratch, "packets")
        try:
            await session.cli(f"log enable -f {log} gdb-remote packets")
            yield session
        finally:
            await session.close()
            _show_the_end_of(log)


def _show_the_end_of(log: Path) -> None:
    """Print the last packets, which pytest shows if the test fails."""
    text = log.read_text(errors="replace") if log.exists() else ""
    for line in text.splitlines()[-_PACKETS_SHOWN:]:
        print(line[:_CHARACTERS_SHOWN])
