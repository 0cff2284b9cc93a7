"""The socket to QEMU's stub: requests with a timeout, stops without one.

QEMU pauses a running guest at any byte it is sent, and drops that byte. The session's states keep
us from sending then; the one case they cannot see, another monitor's ``cont``, is repaired here.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from kvmdbg.errors import AttachError, RemoteProtocolError, TargetError, VmGone, WaitTimeout
from kvmdbg.rsp.client.session import ClientSession, Reply, Stop, Unsolicited
from kvmdbg.rsp.client.states import ClientState
from kvmdbg.rsp.frame import ACK
from kvmdbg.rsp.stops import StopReply

CONNECT_TIMEOUT = 5.0
REQUEST_TIMEOUT = 10.0
"""Seconds that QEMU may take to answer: its main loop can be busy, with a snapshot for one."""

_LOST_PACKET_TIMEOUT = 0.3
"""Seconds without an acknowledgement after which a packet is lost, once QEMU said that it paused
a running guest."""


class StubConnection(asyncio.Protocol):
    """One connection; requests are put in order, so that any task may make them."""

    def __init__(self) -> None:
        self._session = ClientSession()
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Reply | Stop] | None = None
        self._acknowledged = asyncio.Event()
        self._failure: TargetError | None = None
        self._unsent = b""
        """Acknowledgements, which QEMU awaits only before the next request: they go with that, and
        so cost no write of their own."""
        self._transport: asyncio.WriteTransport

    @classmethod
    async def open(cls, path: str | os.PathLike[str]) -> StubConnection:
        """Connect to the stub's unix socket. Raises AttachError."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, connection = await loop.create_unix_connection(cls, os.fspath(path))
        except (OSError, TimeoutError) as error:
            why = getattr(error, "strerror", None) or f"no answer in {CONNECT_TIMEOUT:.0f} s"
            raise AttachError(
                f"QEMU's gdbstub at {os.fspath(path)} cannot be reached ({why}): "
                "check that the VM runs and that no other debugger is connected to it"
            ) from error
        return connection

    # --- asking ----------------------------------------------------------------------------------

    async def request(self, payload: bytes, timeout: float = REQUEST_TIMEOUT) -> bytes:
        """The reply to ``payload``. The VM is stopped.

        Raises WaitTimeout, VmGone, and LocalProtocolError while the VM runs.
        """
        async with self._turn:
            await self._settle(timeout)
            data = self._session.request(payload)
            answer = self._expect()
            self._send(data)
            reply = await self._wait(answer, timeout)
            if isinstance(reply, Stop):
                raise RemoteProtocolError("QEMU's gdbstub answered a request with a stop")
            return reply.payload

    async def checked(self, payload: bytes) -> None:
        """As :meth:`request`, for what is answered by OK. Raises TargetError otherwise."""
        reply = await self.request(payload)
        if reply != b"OK":
            raise TargetError(f"QEMU's gdbstub refused {_shown(payload)} ({describe(reply)})")

    async def _settle(self, timeout: float) -> None:
        """Wait for an answer that is still outstanding: the task that asked may have been
        cancelled, or have timed out."""
        if self._failure is not None:
            raise self._failure
        if self._answer is not None and not self.resumed:
            await self._wait(self._answer, timeout)

    def _expect(self) -> asyncio.Future[Reply | Stop]:
        self._acknowledged.clear()
        self._answer = asyncio.get_running_loop().create_future()
        # Nobody waits for the future of a cancelled caller: its failure is no news then.
        self._answer.add_done_callback(lambda f: f.cancelled() or f.exception())
        return self._answer

    async def _wait(self, answer: asyncio.Future[Reply | Stop], timeout: float) -> Reply | Stop:
        if not await settled(answer, timeout):
            raise _silent(timeout)
        return answer.result()

    # --- running ---------------------------------------------------------------------------------

    @property
    def resumed(self) -> bool:
        """True from :meth:`resume` to the stop."""
        return self._session.state in (ClientState.RESUMING, ClientState.RUNNING)

    async def ready(self) -> None:
        """When this returns, :meth:`resume` may be called until the event loop runs again."""
        async with self._turn:
            await self._settle(REQUEST_TIMEOUT)

    def resume(self, payload: bytes) -> asyncio.Future[Reply | Stop]:
        """Let the VM run; the future is the stop, or a Reply that refuses."""
        if self._failure is not None:
            raise self._failure
        data = self._session.resume(payload)
        answer = self._expect()
        self._send(data)
        return answer

    async def taken(self) -> None:
        """Wait until QEMU has taken the last resumption, so that a stop comes after it."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._acknowledged.wait()
        except TimeoutError:
            raise _silent(REQUEST_TIMEOUT) from None

    async def stopped(self, timeout: float) -> None:
        """Wait until the stub has reported the stop of a resumed VM. Raises WaitTimeout."""
        if self.resumed and self._answer is not None:
            await self._wait(self._answer, timeout)

    def stopped_elsewhere(self, stop: StopReply) -> None:
        """The resumed VM is known to have stopped though the stub did not say so."""
        if self._session.state is ClientState.RUNNING:
            self._session.abandon()
            self._resolve(Stop(stop))

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            events = self._session.receive_data(data)
        except RemoteProtocolError as error:
            self._fail(TargetError(f"QEMU's gdbstub sent nonsense: {error}"))
            self._transport.abort()
            return
        reply = self._session.data_to_send()
        if reply.strip(ACK):
            self._send(reply)
        else:
            self._unsent += reply
        if self._session.state not in (ClientState.SENT, ClientState.RESUMING):
            self._acknowledged.set()
        for event in events:
            if isinstance(event, Reply | Stop):
                self._resolve(event)
            elif isinstance(event, Unsolicited) and not self._acknowledged.is_set():
                self._expect_loss()

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.close()
        self._fail(VmGone("QEMU closed the connection to its gdbstub: the VM has ended"))

    def close(self) -> None:
        """Hang up; QEMU leaves the VM stopped."""
        self._fail(VmGone("the connection to QEMU's gdbstub is closed"))
        self._transport.close()

    def _send(self, data: bytes) -> None:
        if data:
            self._transport.write(self._unsent + data)
            self._unsent = b""

    def _resolve(self, event: Reply | Stop) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(event)

    def _fail(self, failure: TargetError) -> None:
        self._failure = self._failure or failure
        self._acknowledged.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._failure)

    def _expect_loss(self) -> None:
        """A stop came before the acknowledgement: either it is an old one, or our packet has
        just paused a guest that somebody resumed, and is lost."""
        waiting_for = self._answer

        def resend() -> None:
            if self._answer is waiting_for and not self._acknowledged.is_set():
                self._send(self._session.resend())

        asyncio.get_running_loop().call_later(_LOST_PACKET_TIMEOUT, resend)


async def settled(future: asyncio.Future[Any], timeout: float | None) -> bool:
    """Wait for ``future``, ``timeout`` seconds at most; True once it is done.

    As :func:`asyncio.wait` it lets the future be when the caller is cancelled; it is for one, and
    every request comes by here.
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    timer = None if timeout is None else loop.call_later(timeout, wake)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)
        if timer is not None:
            timer.cancel()
    return future.done()


def _silent(timeout: float) -> WaitTimeout:
    return WaitTimeout(
        f"QEMU's gdbstub did not answer within {timeout:.0f} s: QEMU may be hung; "
        "see its log in the VM's runtime folder"
    )


def describe(reply: bytes) -> str:
    """A reply that is no success, in words."""
    if not reply:
        return "it does not know that request"
    if reply[:1] == b"E" and reply[1:].isdigit():
        # QEMU writes its errno in decimal, whatever the protocol says of hex.
        return f"error {int(reply[1:])}, {os.strerror(int(reply[1:]))}"
    return f"it said {_shown(reply)}"


def _shown(payload: bytes) -> str:
    return payload[:40].decode("ascii", "replace")
