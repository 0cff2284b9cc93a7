"""The I/O under one RSP client: a transport, the protocol's session, and an inbox."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import cast

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.frame import Garbage
from kvmdbg.rsp.server.commands import Command
from kvmdbg.rsp.server.replies import ConsoleOutput, Reply
from kvmdbg.rsp.server.session import Anew, InterruptRequest, ServerSession
from kvmdbg.rsp.stops import StopReply
from kvmdbg.server.client import PACKET_SIZE
from kvmdbg.target.events import VmEvent
from kvmdbg.target.stops import Stop

log = logging.getLogger(__name__)

MAX_UNREAD = 1 << 22
"""Bytes that a client may leave unread."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """The client is gone."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The client has had time to find its bearings after it connected."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """A while ago the VM stopped like this, and may still be."""

    stop: Stop


Item = Command | InterruptRequest | VmEvent | Lasting | Ready | HangUp
"""What a client's task has to deal with, in order of arrival."""


class Connection(asyncio.Protocol):
    """One client's connection. What it sends before :meth:`start` is not looked at.

    ``serve`` is run in a task of its own for as long as it wants the connection.
    """

    def __init__(
        self, serve: Callable[[Connection], Coroutine[None, None, None]], *, on_line: bool = False
    ) -> None:
        self._serve = serve
        self.on_line = on_line
        """The client is at the other end of a terminal line: nothing tells who it is."""
        self._transport: asyncio.Transport
        self._early: bytearray | None = bytearray()
        """What came before :meth:`start`; None from then on. Pausing is not enough: CPython 3.11.2,
        which Debian 12 has, begins to read after ``connection_made`` whatever that asked for."""
        self._task: asyncio.Task[None]
        self.rsp = ServerSession(PACKET_SIZE, on_line=on_line)
        self.inbox: asyncio.Queue[Item] = asyncio.Queue()

    @property
    def socket(self) -> socket.socket:
        """The connected socket."""
        return cast(socket.socket, self._transport.get_extra_info("socket"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()
        self._task = asyncio.create_task(self._run(), name="rsp-client")

    async def wait_served(self) -> None:
        """Until nobody serves it any more."""
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            await self._serve(self)
        finally:
            self.close()

    def start(self) -> None:
        """Begin to take what the client sends."""
        early, self._early = self._early, None
        self._transport.resume_reading()
        if early:
            self.data_received(bytes(early))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._early is not None:
            self._early += data
            if len(self._early) > PACKET_SIZE:
                self.close()  # nobody who may connect says so much unasked
            return
        self._receive(data)
        if acknowledgements := self.rsp.data_to_send():
            self._transport.write(acknowledgements)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self.rsp.close()
        self.inbox.put_nowait(HangUp())

    def _receive(self, data: bytes) -> None:
        try:
            events = self.rsp.receive_data(data)
        except RemoteProtocolError as error:
            log.warning("an RSP client is dropped: %s", error)
            self.close()
            return
        for event in events:
            match event:
                case Garbage(count):
                    log.debug("an RSP client sent %d bytes outside of packets", count)
                case Anew():
                    self.close()
                    self.inbox.put_nowait(HangUp())
                case _:
                    self.inbox.put_nowait(event)

    def send(self, reply: Reply | ConsoleOutput) -> None:
        """Answer; what the client sent ahead is dealt with next."""
        self._write(self.rsp.send(reply))
        self._receive(b"")

    def notify(self, stop: StopReply) -> None:
        """Tell of a stop, in non-stop mode."""
        self._write(self.rsp.notify(stop))

    def running(self) -> None:
        """The command was accepted, and its reply will be a stop reply."""
        self.rsp.resume()
        self._receive(b"")

    def stay_silent(self) -> None:
        """The command gets no reply."""
        self.rsp.stay_silent()
        self._receive(b"")

    def _write(self, data: bytes) -> None:
        self._transport.write(data + self.rsp.data_to_send())
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            log.warning("an RSP client is dropped: it does not read what it is sent")
            self._transport.abort()

    def close(self) -> None:
        """Hang up once everything is sent."""
        self.rsp.close()
        self._transport.close()
