"""A QMP monitor without a QEMU: says what a test scripts.

async with FakeMonitor(path) as monitor:
    monitor.status = "paused"
    monitor.replies["stop"] = monitor.stop            # events come before the reply
    monitor.replies["cont"] = QmpFailure("no")
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass
class QmpFailure:
    """An error reply."""

    text: str


SILENCE = object()
"""A reply that never comes."""

HANG_UP = object()
"""The monitor closes instead of replying."""

Reply = Any | Callable[[], Any]


class FakeMonitor:
    """Serves one client at a time, as QEMU does: the next one waits for its greeting."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.status = "running"
        self.commands: list[str] = []
        self.replies: dict[str, Reply] = {"query-status": lambda: {"status": self.status}}
        self.leftovers: list[list[dict[str, Any]]] = []
        """What is said to the next clients before the greeting, the last of it to the first."""
        self._writer: asyncio.StreamWriter | None = None
        self._free = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, self.path)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def event(self, name: str, **data: Any) -> None:
        """Send an event to the client."""
        self._send({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    def stop(self) -> dict[str, Any]:
        """What ``stop`` does in QEMU: the event precedes the reply."""
        self.status = "paused"
        self.event("STOP")
        return {}

    def cont(self) -> dict[str, Any]:
        """What ``cont`` does in QEMU."""
        self.status = "running"
        self.event("RESUME")
        return {}

    def hang_up(self) -> None:
        """Close the client's connection, as a QEMU that ends does."""
        assert self._writer is not None
        self._writer.close()

    def _send(self, message: Any) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with self._free:
                self._writer = writer
                await self._serve(reader)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        for message in self.leftovers.pop() if self.leftovers else ():
            self._send(message)
        version = {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "fake"}
        self._send({"QMP": {"version": version, "capabilities": ["oob"]}})
        async for request in _requests(reader):
            command = request["execute"]
            if command != "qmp_capabilities":
                self.commands.append(command)
            reply = self.replies.get(command, {})
            result = reply() if callable(reply) else reply
            if result is HANG_UP:
                return
            if isinstance(result, QmpFailure):
                error = {"class": "GenericError", "desc": result.text}
                self._send({"error": error, "id": request["id"]})
            elif result is not SILENCE:
                self._send({"return": result, "id": request.get("id")})


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """JSON objects one after another, with nothing between them."""
    text = ""
    decoder = json.JSONDecoder()
    while data := await reader.read(4096):
        text += data.decode()
        while text:
            try:
                request, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                break
            text = text[end:].lstrip()
            yield request
