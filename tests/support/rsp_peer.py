"""A gdb for tests: speaks RSP over a stream with the naive codec, and asserts good manners."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from kvmdbg.server.linetransport import LineTransport
from tests.support import naive_rsp
from tests.support.recording import Recorded, new_log

TIMEOUT = 10.0
_LIMIT = 1 << 20


class RspPeer:
    """One connection; acknowledges every packet until :meth:`no_acks`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._acks = True
        self._log = new_log(Recorded.RAW)
        self.console = b""
        self.notifications: list[bytes] = []
        """What came that nobody asked for, and :meth:`notified` has not taken."""

    @classmethod
    async def unix(cls, path: Path) -> RspPeer:
        return cls(*await asyncio.open_unix_connection(path, limit=_LIMIT))

    @classmethod
    async def tcp(cls, host: str, port: int) -> RspPeer:
        return cls(*await asyncio.open_connection(host, port, limit=_LIMIT))

    @classmethod
    async def line(cls, fd: int) -> RspPeer:
        """Over a nonblocking terminal, which stays open when the peer is closed."""
        reader = asyncio.StreamReader(limit=_LIMIT)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = LineTransport(fd, protocol)
        transport.resume_reading()
        loop = asyncio.get_running_loop()
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def send(self, payload: bytes) -> None:
        """Send a packet and see it acknowledged."""
        self._record("w", payload)
        self.write(naive_rsp.packet(payload))
        if self._acks:
            async with asyncio.timeout(TIMEOUT):
                assert await self._reader.readexactly(1) == b"+"

    async def receive(self) -> bytes:
        """The next payload; console output goes to :attr:`console`."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                wire = await self._reader.readuntil(b"#") + await self._reader.readexactly(2)
                if wire.startswith(b"%"):
                    self._notify(wire)
                    continue
                if self._acks:
                    self.write(b"+")
                payload = naive_rsp.payload(wire)
                if payload[:1] != b"O" or payload == b"OK":
                    self._record("r", payload)
                    return payload
                self.console += bytes.fromhex(payload[1:].decode())

    async def notified(self) -> bytes:
        """The next notification, without its checksum; to be awaited when nothing else is due."""
        async with asyncio.timeout(TIMEOUT):
            while not self.notifications:
                wire = await self._reader.readuntil(b"#") + await self._reader.readexactly(2)
                assert wire.startswith(b"%"), wire
                self._notify(wire)
        return self.notifications.pop(0)

    def _notify(self, wire: bytes) -> None:
        payload = naive_rsp.payload(b"$" + wire[1:])
        self._record("r", payload)
        self.notifications.append(payload)

    def _record(self, direction: str, payload: bytes) -> None:
        if self._log:
            text = payload.decode("latin-1").encode("unicode_escape").decode()
            with self._log.open("a") as log:
                log.write(f"{direction} ${text.replace('#', '.')}#00\n")

    async def ask(self, payload: bytes) -> bytes:
        await self.send(payload)
        return await self.receive()

    async def monitor(self, line: str) -> str:
        """The output of a monitor command that succeeds."""
        self.console = b""
        assert await self.ask(b"qRcmd," + line.encode().hex().encode()) == b"OK"
        return self.console.decode()

    async def no_acks(self) -> None:
        assert await self.ask(b"QStartNoAckMode") == b"OK"
        self._acks = False

    def interrupt(self) -> None:
        self.write(b"\x03")

    async def at_end(self) -> bool:
        """True if the server has hung up and said nothing more."""
        async with asyncio.timeout(TIMEOUT):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:  # our acknowledgement came too late
                return True

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
