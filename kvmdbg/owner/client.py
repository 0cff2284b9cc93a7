"""A client of a VM's owner: calls, their answers, and events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kvmdbg.errors import KvmdbgError, OwnerError, RemoteProtocolError, VmGone
from kvmdbg.machine.processes import ProcessId
from kvmdbg.owner.protocol import (
    LINE_LIMIT,
    VERSION,
    Answer,
    AnyRequest,
    Bye,
    Call,
    Hello,
    Push,
    Role,
    Status,
    VmStatus,
    decode_message,
    encode,
)
from kvmdbg.target.events import Gone, VmEvent

CALL_TIMEOUT = 60.0
"""Seconds within which the owner answers anything; its own waits are shorter."""


OWNER_ENDED = "the process that served it ended"


def gone_error(gone: Gone, name: str) -> KvmdbgError:
    """What to raise after ``gone``: VmGone, or OwnerError where the VM ``name`` lives."""
    return (OwnerError if gone.lives else VmGone)(gone.sentence(name))


class OwnerClient:
    """One connection to an owner; made by :meth:`connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._last_id = 0
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._subscribers: list[Callable[[VmEvent], None]] = []
        self._gone: Gone | None = None
        self._leaving = False
        self._name = ""
        self._qemu: ProcessId | None = None
        self._pump = asyncio.create_task(self._read_messages(), name="owner-client")
        self.id = ""
        self.started = False
        """True if this client started the owner."""

    @classmethod
    async def connect(cls, path: Path, *, role: Role = Role.USER, kind: str) -> OwnerClient:
        """Connect to the control socket ``path``; ``kind`` begins the client's id.

        Raises OwnerError when nobody listens, the owner ends, or is of another version.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
        except OSError as error:
            raise OwnerError(
                f"the owner of the VM does not answer on {path} ({error.strerror}): "
                "run the command again"
            ) from error
        client = cls(reader, writer)
        try:
            client.id = await client.call(Hello(VERSION, role, kind))
        except VmGone as error:
            await client.close()
            raise OwnerError("the owner of the VM ended just now: run the command again") from error
        except BaseException:
            await client.close()
            raise
        return client

    def subscribe(self, callback: Callable[[VmEvent], None]) -> Callable[[], None]:
        """Call ``callback`` for every event of the VM; the result ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def call(self, request: AnyRequest, timeout: float = CALL_TIMEOUT) -> Any:
        """Make a request and return its result, of the type that the request names.

        Raises what the owner raised, VmGone when the VM has ended, OwnerError when only the owner
        has, or does not answer within *timeout* seconds.
        """
        if self._pump.done():
            raise self._lost()
        self._last_id += 1
        call = Call(self._last_id, request)
        future = self._pending[call.id] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(encode(call))
            async with asyncio.timeout(timeout):
                answer = await future
        except TimeoutError as error:
            raise OwnerError(
                f"the owner of the VM did not answer within {timeout:.0f} s: "
                "see owner.log in the VM's runtime folder"
            ) from error
        finally:
            del self._pending[call.id]
        if answer.failure is not None:
            raise answer.failure.exception()
        if request.answer is None:
            return None
        return msgspec.json.decode(answer.result, type=request.answer)

    async def status(self) -> VmStatus:
        """What the owner knows of its VM."""
        status: VmStatus = await self.call(Status())
        self._name, self._qemu = status.name, ProcessId.of(status.pid)
        return status

    async def bye(self) -> None:
        """Leave in good order."""
        self._leaving = True
        if not self._pump.done():
            with contextlib.suppress(VmGone, OwnerError):
                await self.call(Bye(), timeout=5.0)
        await self.close()

    async def close(self) -> None:
        """Drop the connection, as a crash would."""
        self._leaving = True
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _lost(self) -> KvmdbgError:
        if self._gone is None:
            return OwnerError(f"the VM {self._name} cannot be asked: this client has left it")
        return gone_error(self._gone, self._name)

    async def _read_messages(self) -> None:
        try:
            while line := await self._reader.readline():
                match decode_message(line):
                    case Answer(id=id) as answer:
                        future = self._pending.get(id)
                        if future is not None and not future.done():
                            future.set_result(answer)
                    case Push(event=event):
                        self._deliver(event)
        except (OSError, ValueError, RemoteProtocolError):
            pass  # the connection is of no use any more, whatever the cause: reported below
        finally:
            if self._gone is None and not self._leaving:
                lives = self._qemu is not None and self._qemu.alive
                self._deliver(Gone(OWNER_ENDED, lives=lives))
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(self._lost())

    def _deliver(self, event: VmEvent) -> None:
        if isinstance(event, Gone):
            self._gone = event
        for callback in tuple(self._subscribers):
            callback(event)
