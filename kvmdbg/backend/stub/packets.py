"""Memory through the stub's m and M, in pieces that fit its packets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvmdbg.backend.stub.connection import StubConnection, describe
from kvmdbg.errors import MemoryFault
from kvmdbg.rsp.client import requests
from kvmdbg.rsp.client.requests import error_number
from kvmdbg.rsp.octets import from_hex

_HEADER = 48
"""Bytes that M needs besides its data, generously."""


class PacketMemory:
    """Whatever addresses the stub is set to: those of the selected vCPU, or physical ones."""

    def __init__(self, connection: StubConnection, packet_size: int, page_size: int) -> None:
        self._connection = connection
        self._page_size = page_size
        self._most_read = packet_size // 2
        self._most_written = (packet_size - _HEADER) // 2

    async def read_page(self, address: int, length: int) -> bytes:
        """Up to ``length`` bytes, none beyond the page that ``address`` is in; b"" if that page
        cannot be read. The stub answers for all of a range or not at all."""
        most = min(self._page_size - address % self._page_size, self._most_read)
        reply = await self._connection.request(requests.read_memory(address, min(length, most)))
        return b"" if not reply or error_number(reply) is not None else from_hex(reply)

    async def write(self, address: int, data: bytes) -> None:
        """Write all of ``data``. Raises MemoryFault."""
        for start in range(0, len(data), self._most_written):
            piece = data[start : start + self._most_written]
            reply = await self._connection.request(requests.write_memory(address + start, piece))
            if reply != b"OK":
                raise MemoryFault(
                    f"{len(piece)} bytes at {address + start:#x} cannot be written: "
                    f"{describe(reply)}"
                )

    @asynccontextmanager
    async def physical(self) -> AsyncIterator[None]:
        """Inside, addresses are guest physical ones."""
        await self._connection.checked(requests.set_physical_memory_mode(physical=True))
        try:
            yield
        finally:
            await self._connection.checked(requests.set_physical_memory_mode(physical=False))
