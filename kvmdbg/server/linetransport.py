"""A terminal device as a transport of asyncio's, which has none for what is read and written by one
descriptor and outlives a conversation."""

from __future__ import annotations

import asyncio
import os

_PIECE = 1 << 16


class LineTransport(asyncio.Transport):
    """One conversation over ``fd``, a nonblocking terminal; that stays open when it ends.

    Nothing is read before ``resume_reading()``.
    """

    def __init__(self, fd: int, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._fd = fd
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._ended = asyncio.Event()
        self._is_closing = False
        protocol.connection_made(self)

    async def wait_ended(self, timeout: float) -> None:
        """Until all is sent after ``close()``, or dropped after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            self.abort()

    def pause_reading(self) -> None:
        self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if not self._is_closing:
            self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _PIECE)
        except BlockingIOError:
            return
        except OSError as error:  # EIO: nobody has the other end open
            self._end(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._end(None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing:
            return
        was_empty = not self._unsent
        self._unsent += data
        if was_empty:
            self._send()

    def _send(self) -> None:
        try:
            del self._unsent[: os.write(self._fd, self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(error)
            return
        if self._unsent:
            self._loop.add_writer(self._fd, self._send)
        elif self._is_closing:
            self._end(None)
        else:
            self._loop.remove_writer(self._fd)

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._loop.remove_reader(self._fd)
            if not self._unsent:
                self._end(None)

    def abort(self) -> None:
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        self._is_closing = True
        self._unsent.clear()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        if not self._ended.is_set():
            self._ended.set()
            self._loop.call_soon(self._protocol.connection_lost, error)
