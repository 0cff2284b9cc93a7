"""A Debug Adapter Protocol client, as an IDE is one, with a real gdb as the adapter.

Source: the protocol's specification, https://microsoft.github.io/debug-adapter-protocol.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.gdb import COMMAND_TIMEOUT, GDB_18, gdb_environment, gdb_options
from tests.support.recording import Recorded


class DapError(Exception):
    """A request failed; the text is the adapter's message."""


class Dap:
    """One adapter; made by :func:`start_dap`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._events: dict[str, deque[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._responses: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._arrived = asyncio.Event()
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while head := await self._head():
            message = json.loads(await self.process.stdout.readexactly(head))
            if message["type"] == "response":
                self._responses[message["request_seq"]].set_result(message)
            else:
                events = self._events.setdefault(message["event"], deque())
                events.append(message.get("body", {}))
            self._arrived.set()

    async def _head(self) -> int:
        """The length of the next message; 0 when there is none."""
        assert self.process.stdout is not None
        length = 0
        while line := (await self.process.stdout.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return length

    def send(self, command: str, **arguments: Any) -> asyncio.Future[dict[str, Any]]:
        """Send a request whose answer may be a while in coming."""
        number = next(self._numbers)
        request = {"seq": number, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(request).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._responses[number] = asyncio.get_running_loop().create_future()
        return self._responses[number]

    async def answer(self, response: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        """The body of an answer. Raises DapError."""
        async with asyncio.timeout(COMMAND_TIMEOUT):
            message = await response
        if not message["success"]:
            raise DapError(message["message"])
        return message.get("body") or {}

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the body of its answer. Raises DapError."""
        return await self.answer(self.send(command, **arguments))

    async def wait_event(self, name: str) -> dict[str, Any]:
        """The body of the next event of that name that nobody has waited for."""
        async with asyncio.timeout(COMMAND_TIMEOUT):
            while not self._events.get(name):
                self._arrived.clear()
                await self._arrived.wait()
        return self._events[name].popleft()

    async def close(self) -> None:
        """End the adapter without its saying anything to the target."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._pump


@asynccontextmanager
async def start_dap() -> AsyncIterator[Dap]:
    """Start gdb as an adapter; killed afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(str(GDB_18), *gdb_options(Recorded.DAP), "--interpreter=dap"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=gdb_environment(),
    )
    session = Dap(process)
    try:
        yield session
    finally:
        await session.close()
