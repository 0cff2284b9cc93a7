"""A real gdb, driven over MI; only its output parser is borrowed (pygdbmi)."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pygdbmi import gdbmiparser

from tests.support.recording import Recorded, new_log

COMMAND_TIMEOUT = 60.0

GDB_18 = Path(sys.prefix, "gdb18", "bin", "gdb")
"""A gdb newer than Debian's, from PyPI; ``make setup`` puts it where no PATH finds it."""


def gdb_options(client: Recorded) -> list[str]:
    """What any gdb of the tests is started with, the interpreter aside."""
    log = new_log(client)
    return ["-nx", "-q", *(("-iex", f"set remotelogfile {log}") if log else ())]


def gdb_environment() -> dict[str, str]:
    """And in which environment."""
    return os.environ | {"DEBUGINFOD_URLS": "", "PYTHONPATH": str(GDB_18.parents[1])}


class GdbError(Exception):
    """gdb answered ^error; the text is its message."""


class Gdb:
    """One gdb process; made by :func:`start_gdb`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.console: list[str] = []
        """All that the user would have seen: console, target output and log."""
        self.stops: deque[dict[str, Any]] = deque()
        """Payloads of ``*stopped`` that nobody has waited for."""
        self._tokens = itertools.count(1)
        self._results: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._arrived = asyncio.Event()
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            text = line.decode(errors="replace").rstrip("\n")
            if text.startswith("(gdb)"):
                continue
            record = gdbmiparser.parse_response(text)
            match record["type"]:
                case "result" if record["token"] in self._results:
                    self._results[record["token"]].set_result(record)
                case "notify" if record["message"] == "stopped":
                    self.stops.append(record["payload"])
                case "console" | "target" | "log":
                    self.console.append(record["payload"])
            self._arrived.set()
        for future in self._results.values():
            if not future.done():
                future.set_exception(GdbError("gdb has ended"))
        self._arrived.set()

    async def mi(self, command: str, timeout: float = COMMAND_TIMEOUT) -> dict[str, Any]:
        """Run an MI command and return the payload of its result. Raises GdbError."""
        token = next(self._tokens)
        future = self._results[token] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        self.process.stdin.write(f"{token}{command}\n".encode())
        async with asyncio.timeout(timeout):
            record = await future
        del self._results[token]
        if record["message"] == "error":
            raise GdbError(record["payload"]["msg"])
        return record["payload"] or {}

    async def cli(self, command: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a CLI command and return what it printed. Raises GdbError."""
        before = len(self.console)
        quoted = command.replace("\\", "\\\\").replace('"', '\\"')
        await self.mi(f'-interpreter-exec console "{quoted}"', timeout)
        return "".join(self.console[before:])

    async def value(self, expression: str) -> int:
        """The value of an expression, as an unsigned 64-bit integer."""
        payload = await self.mi(f'-data-evaluate-expression "(unsigned long)({expression})"')
        return int(payload["value"].split()[0], 0)

    async def wait_stopped(self, timeout: float = COMMAND_TIMEOUT) -> dict[str, Any]:
        """The payload of the next ``*stopped``."""
        async with asyncio.timeout(timeout):
            while not self.stops:
                self._arrived.clear()
                await self._arrived.wait()
                if self._pump.done():
                    raise GdbError("gdb has ended")
        return self.stops.popleft()

    async def wait_console(self, text: str, timeout: float = COMMAND_TIMEOUT) -> None:
        """Wait until gdb has shown ``text``."""
        async with asyncio.timeout(timeout):
            while text not in "".join(self.console):
                self._arrived.clear()
                await self._arrived.wait()

    async def cont(self, timeout: float = COMMAND_TIMEOUT) -> dict[str, Any]:
        """Continue and return the payload of the stop."""
        self.stops.clear()
        await self.mi("-exec-continue")
        return await self.wait_stopped(timeout)

    async def stepi(self, timeout: float = COMMAND_TIMEOUT) -> dict[str, Any]:
        """Step one instruction and return the payload of the stop."""
        self.stops.clear()
        await self.mi("-exec-step-instruction")
        return await self.wait_stopped(timeout)

    def interrupt(self) -> None:
        """Ctrl-C, as a user presses it."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()

    async def close(self) -> None:
        """End gdb without its saying anything to the target."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._pump


def _version(gdb: Path | str) -> Recorded:
    return Recorded.GDB_18 if gdb == GDB_18 else Recorded.GDB_13


@asynccontextmanager
async def start_gdb(
    program: Path | str | None,
    target: str | None = None,
    gdb: Path | str = "gdb",
    *,
    client: Recorded | None = None,
) -> AsyncIterator[Gdb]:
    """Start gdb on a symbol file, connected to ``target`` if given; killed afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(str(gdb), *gdb_options(client or _version(gdb)), "--interpreter=mi3"),
        *([str(program)] if program else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        limit=1 << 22,
        env=gdb_environment(),
    )
    session = Gdb(process)
    try:
        await session.mi("-gdb-set pagination off")
        await session.mi("-gdb-set confirm off")
        if target is not None:
            await session.mi(f"-target-select remote {target}")
            await session.wait_stopped()
        yield session
    finally:
        await session.close()
