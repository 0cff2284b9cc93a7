"""A stub that says what it is told to, on a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from kvmdbg.rsp import frame

Answer = bytes | Callable[[bytes], bytes | None] | None
"""A reply; a function of the request; None or a function's None for silence."""

TARGET = (
    b'<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
    b'<feature name="core"><reg name="rax" bitsize="64" regnum="0"/><reg name="rip" bitsize="64"/>'
    b'<!-- <reg name="ghost" bitsize="64"/> --><reg name="eflags" bitsize="32"/></feature></target>'
)


class ScriptedStub:
    """``answers`` by request, the longest prefix counts; ``seen`` is what was asked."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Answer] = {
            b"qSupported": b"PacketSize=1000;vContSupported+",
            b"?": b"T05thread:p01.01;",
            b"qfThreadInfo": b"mp01.01",
            b"qsThreadInfo": b"l",
            b"qXfer:features:read:target.xml:": b"l" + TARGET,
            b"qqemu.sstepbits": b"ENABLE=1,NOIRQ=2,NOTIMER=4",
            b"qqemu.sstep": b"0x7",
            b"Qqemu": b"OK",
            b"Hg": b"OK",
            b"Z": b"OK",
            b"z": b"OK",
            b"vCont": None,
            b"g": b"11" * 8 + b"22" * 8 + b"02000000",
        }
        self.seen: list[bytes] = []
        self.deaf = False
        """Lose what comes, as QEMU does while the guest runs."""
        self._decoder = frame.Decoder(frame.Role.SERVER)
        self._writer: asyncio.StreamWriter | None = None
        self._serving: asyncio.Task[object] | None = None
        self._resumed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._serve, path)
        try:
            yield
        finally:
            server.close()
            self.hang_up()
            if self._serving is not None:
                await self._serving

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer, self._serving = writer, asyncio.current_task()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                for event in self._decoder.feed(data):
                    if isinstance(event, frame.Packet) and not self.deaf:
                        writer.write(b"+")
                        self._answer(event.payload)

    def _answer(self, request: bytes) -> None:
        self.seen.append(request)
        if request.startswith(b"vCont"):
            self._resumed.set()
        key = max((k for k in self.answers if request.startswith(k)), key=len, default=b"")
        answer = self.answers.get(key, b"")
        reply = answer(request) if callable(answer) else answer
        if reply is not None:
            self.say(reply)

    async def wait_resumed(self) -> None:
        """Wait for the next vCont."""
        self._resumed.clear()
        await self._resumed.wait()

    def say(self, payload: bytes) -> None:
        """Send a packet, asked or not."""
        assert self._writer is not None
        self._writer.write(frame.encode_packet(payload))

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
