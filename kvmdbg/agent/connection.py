"""The socket to the agent: requests in flight, the doorbell, and how it all ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kvmdbg.agent.refusals import refusal
from kvmdbg.errors import (
    AgentError,
    AgentLost,
    AgentTimeout,
    RemoteProtocolError,
    TargetError,
    VmGone,
)
from kvmdbg.wire.messages import DOORBELL, HELLO, Message
from kvmdbg.wire.stream import Frame, FrameDecoder
from kvmdbg.wire.structs import MAGIC, VERSION, Hello, Welcome

Q = TypeVar("Q")
A = TypeVar("A")

CONNECT_TIMEOUT = 5.0
REQUEST_TIMEOUT = 10.0
"""Seconds. The agent waits for vCPUs to leave the guest, on a host that may be busy."""

_LAST_BREATH = 0.5
"""Seconds that a dying QEMU may take from closing its sockets to its end."""


@dataclass(frozen=True)
class _Pending:
    id: int
    message: Message[Any, Any]
    answer: asyncio.Future[Any]


class AgentConnection(asyncio.Protocol):
    """One controller's connection. Any number of requests may be under way at once; the agent
    answers them in their order."""

    def __init__(self) -> None:
        self.welcome: Welcome
        """What the agent said of itself and its VM."""
        self._decoder = FrameDecoder()
        self._pending: deque[_Pending] = deque()
        self._last_id = 0
        self._on_doorbell: Callable[[int], None] | None = None
        self._rung: int | None = None
        self._process: int | None = None  # a pidfd, once the agent has greeted
        self._failure: TargetError | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._end: asyncio.Task[None] | None = None
        self._transport: asyncio.WriteTransport

    @classmethod
    async def connect(cls, path: Path | str) -> AgentConnection:
        """Connect to the agent that listens at a unix socket. Raises AgentError and VmGone."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, connection = await loop.create_unix_connection(cls, str(path))
        except (OSError, TimeoutError) as error:
            why = getattr(error, "strerror", None) or f"no answer in {CONNECT_TIMEOUT:g} s"
            raise AgentError(
                f"the agent in QEMU cannot be reached at {path} ({why}): "
                "check that the VM runs, and under KVM"
            ) from error
        return await connection._greeted(None)

    @classmethod
    async def over(cls, peer: socket.socket, pid: int) -> AgentConnection:
        """Talk over a stream socket whose other end the agent in process ``pid`` has.

        Raises AgentError and VmGone.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, sock=peer)
        return await connection._greeted(pid)

    async def _greeted(self, pid: int | None) -> AgentConnection:
        try:
            self.welcome = await self.ask(HELLO, Hello(), timeout=CONNECT_TIMEOUT)
            if (self.welcome.magic, self.welcome.version) != (MAGIC, VERSION):
                raise AgentError(
                    f"the agent in QEMU speaks version {self.welcome.version} of its protocol, "
                    f"this kvmdbg version {VERSION}: use the kvmdbg that started the VM, "
                    "or start the VM again"
                )
            self._process = os.pidfd_open(pid or self.welcome.pid)
        except AgentTimeout as error:
            self.close()
            raise AgentTimeout(
                f"the agent in QEMU did not greet within {CONNECT_TIMEOUT:g} s: another kvmdbg "
                "is using it (it serves one at a time), or QEMU hangs"
            ) from error
        except ProcessLookupError as error:
            self.close()
            raise VmGone("QEMU has ended") from error
        except TargetError:
            self.close()
            raise
        return self

    # --- asking ----------------------------------------------------------------------------------

    async def ask(
        self, message: Message[Q, A], request: Q, *, timeout: float = REQUEST_TIMEOUT
    ) -> A:
        """The answer to ``request``.

        Raises AgentRefused where the agent says no, AgentTimeout, AgentLost and VmGone.
        """
        if self._transport.is_closing():
            raise await asyncio.shield(self._lost)
        self._last_id = self._last_id % 0xFFFF_FFFF + 1
        pending = _Pending(self._last_id, message, asyncio.get_running_loop().create_future())
        frame = Frame(message.type, pending.id, message.request.encode(request))
        self._pending.append(pending)
        self._transport.write(frame.encode())
        try:
            async with asyncio.timeout(timeout):
                answer: A = await pending.answer
        except TimeoutError:
            raise AgentTimeout(
                f"the agent in QEMU did not answer {message.type.name} within {timeout:g} s: "
                "QEMU may be hung or the host overloaded"
            ) from None
        return answer

    def on_doorbell(self, callback: Callable[[int], None]) -> None:
        """Call ``callback`` with a stop's sequence number when there are stops to be asked for.

        It is not called again until somebody has asked. A ring that came before is not lost.
        """
        self._on_doorbell = callback
        if self._rung is not None:
            sequence, self._rung = self._rung, None
            callback(sequence)

    async def wait_lost(self) -> TargetError:
        """Wait for the end of the connection: AgentLost, or VmGone where QEMU has ended."""
        failure: TargetError = await asyncio.shield(self._lost)
        return failure

    async def wait_hang_up(self) -> None:
        """Wait for the end of the connection, which the agent was asked for."""
        self._failure = self._failure or AgentLost("the agent has let go of the VM")
        await self.wait_lost()

    def close(self) -> None:
        """Hang up. The agent takes its breakpoints out and lets the vCPUs run."""
        self._failure = self._failure or AgentLost("the connection to the agent is closed")
        self._transport.close()

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except RemoteProtocolError as error:
            self._failure = self._failure or AgentError(f"the agent in QEMU failed: {error}")
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end = asyncio.get_running_loop().create_task(self._conclude(), name="agent-lost")

    def _take(self, frame: Frame) -> None:
        if frame.type == DOORBELL.type:
            self._ring(DOORBELL.decode_answer(frame.payload).sequence)
            return
        if not self._pending or (frame.type, frame.id) != (
            self._pending[0].message.type,
            self._pending[0].id,
        ):
            raise RemoteProtocolError(f"it answered what nobody asked: {frame.type}, {frame.id}")
        answer = self._pending[0].answer
        failure, value = None, None
        if frame.status:
            failure = refusal(self._pending[0].message.type, frame.status)
        else:
            value = self._pending[0].message.decode_answer(frame.payload)
        self._pending.popleft()
        if answer.done():  # whoever asked has given up
            return
        if failure is not None:
            answer.set_exception(failure)
        else:
            answer.set_result(value)

    def _ring(self, sequence: int) -> None:
        if self._on_doorbell is None:
            self._rung = sequence
        else:
            self._on_doorbell(sequence)

    async def _conclude(self) -> None:
        failure = self._failure
        if failure is None and await self._has_ended():
            failure = VmGone("QEMU has ended")
        failure = failure or AgentLost(
            "the agent in QEMU hung up: nothing is armed any more, and the guest runs"
            if self._process is not None
            else "the agent in QEMU hung up at once: it serves its own user and root only"
        )
        if self._process is not None:
            os.close(self._process)
        self._lost.set_result(failure)
        while self._pending:
            pending = self._pending.popleft()
            if not pending.answer.done():
                pending.answer.set_exception(failure)

    async def _has_ended(self) -> bool:
        """Whether QEMU ends. Its sockets are closed a moment before."""
        if self._process is None:
            return False
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process, ended.set)
        try:
            async with asyncio.timeout(_LAST_BREATH):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._process)
        return True
