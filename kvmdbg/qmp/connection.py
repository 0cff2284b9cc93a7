"""One connection to a QMP monitor.

Source: QEMU's ``docs/interop/qmp-spec``. A monitor serves one client: a second one connects, and
then waits for a greeting that does not come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from qemu.qmp import (
    ConnectError,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)
from qemu.qmp.qmp_client import GreetingError, NegotiationError

from kvmdbg.errors import MonitorError, VmGone

CONNECT_TIMEOUT = 5.0
EXECUTE_TIMEOUT = 10.0

# The library logs what it raises as well; without a handler that would reach the terminal.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """Something that QEMU said unasked."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)


class _Client(QMPClient):
    """The library's, which makes text for its log of every message, whether anybody reads it or
    not; each step of the guest is two events."""

    def _cb_inbound(self, msg: Message) -> Message:
        return super()._cb_inbound(msg) if self.logger.isEnabledFor(logging.DEBUG) else msg


def _ignore(_event: QmpEvent) -> None:
    pass


class QmpConnection:
    """A connection; :meth:`connect` makes one. ``version`` is QEMU's (major, minor, micro)."""

    def __init__(self, address: str) -> None:
        self.version = (0, 0, 0)
        self._address = address.replace("\0", "@")
        self._on_event: Callable[[QmpEvent], None] = _ignore
        self._client = self._new_client()
        self._hang_up = asyncio.Event()
        self._closed: asyncio.Task[None] | None = None

    def _new_client(self) -> QMPClient:
        client = _Client()
        # A filter sees each event as it is read, before any later reply: order is kept, and
        # since it takes none, the library's queue and history stay empty.
        client.events.event_filter = self._deliver
        return client

    @classmethod
    async def connect(cls, path: Path | str, timeout: float = CONNECT_TIMEOUT) -> QmpConnection:
        """Connect to the monitor at a unix socket; an abstract one starts with a NUL.

        Raises MonitorError when nobody listens or the monitor serves another client.
        """
        connection = cls(str(path))
        await connection._connect(str(path), timeout)
        return connection

    async def _connect(self, path: str, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not await self._negotiate(path):
                    self._client = self._new_client()
        except TimeoutError:
            raise MonitorError(
                f"the monitor {self._address} did not greet within {timeout:g} s: another client "
                "is using it (a monitor serves one at a time), or QEMU hangs"
            ) from None
        except ConnectError as error:
            cause = error.exc
            text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
            raise MonitorError(
                f"cannot connect to the monitor {self._address}: {text or 'it hung up'}"
            ) from error
        greeting = self._client.greeting
        assert greeting is not None, "connect() negotiates"
        version = cast(Mapping[str, Mapping[str, int]], greeting.QMP.version)["qemu"]
        self.version = (version["major"], version["minor"], version["micro"])
        self._closed = asyncio.create_task(self._watch(), name="qmp-watch")

    async def _negotiate(self, path: str) -> bool:
        """False where something came before the greeting, which QEMU had for the client before us,
        or an event before the answer to ``qmp_capabilities``, as QEMU sends it from then on:
        qemu.qmp (0.0.6) takes these for greeting and answer, and gives up."""
        try:
            await self._client.connect(path)
        except ConnectError as error:
            match error.exc:
                case GreetingError(exc=KeyError()) | NegotiationError(exc=AssertionError()):
                    return False
            raise
        return True

    def on_event(self, callback: Callable[[QmpEvent], None]) -> None:
        """Call ``callback`` for every event from now on, in order, as it is read.

        An event that QEMU sent before its reply to a command was delivered before
        :meth:`execute` returns.
        """
        self._on_event = callback

    def _deliver(self, message: Message) -> bool:
        data = message.get("data")
        self._on_event(QmpEvent(str(message["event"]), data if isinstance(data, dict) else {}))
        return False

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = EXECUTE_TIMEOUT,
    ) -> Any:
        """Run a command and return its result.

        Raises MonitorError when QEMU refuses it or does not answer in time, and VmGone when the
        connection is or gets lost.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise MonitorError(
                f"QEMU did not answer {command} on {self._address} within {timeout:g} s: "
                "it may be hung or the host overloaded"
            ) from None
        except ExecuteError as error:
            raise MonitorError(f"QEMU refused {command}: {error}") from error
        except (ExecInterruptedError, StateError) as error:
            raise VmGone(f"QEMU closed its monitor {self._address}") from error
        except QMPError as error:
            raise MonitorError(f"QEMU's answer to {command} makes no sense: {error}") from error

    async def wait_closed(self) -> None:
        """Return when either side has hung up."""
        assert self._closed is not None, "connect() made it"
        await asyncio.shield(self._closed)

    async def close(self) -> None:
        """Hang up. The monitor is free for another client then."""
        self._hang_up.set()
        await self.wait_closed()

    async def _watch(self) -> None:
        """Wait until either side hangs up, and clear away."""
        ends = {
            asyncio.create_task(self._hang_up.wait()),
            asyncio.create_task(self._wait_disconnecting()),
        }
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        # How the peer left, a killed one included, is not this layer's business.
        with contextlib.suppress(EOFError, OSError, QMPError):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._client.disconnect()

    async def _wait_disconnecting(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
