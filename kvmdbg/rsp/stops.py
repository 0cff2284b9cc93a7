"""Stop replies: why the target stopped, as both roles write and read it.

Source: GDB manual, "Stop Reply Packets".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from kvmdbg.addr import Gva
from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.octets import from_hex, to_hex
from kvmdbg.rsp.threadid import ThreadSpec

SIGNAL_NONE = 0
SIGNAL_INT = 2
SIGNAL_TRAP = 5
SIGNAL_KILL = 9


class Watch(Enum):
    """The kinds of watchpoint that a stop reply tells apart."""

    WRITE = b"watch"
    READ = b"rwatch"
    ACCESS = b"awatch"


class Cause(Enum):
    """The kinds of breakpoint that a stop reply tells apart."""

    SOFTWARE = b"swbreak"
    HARDWARE = b"hwbreak"


class HistoryEdge(Enum):
    """Where a replay cannot go on, as ``replaylog`` tells it."""

    BEGIN = b"begin"
    END = b"end"


@dataclass(frozen=True, slots=True)
class Stopped:
    """``T`` or ``S``: all threads are stopped, ``thread`` is the one with news.

    ``registers`` are expedited values by register number, in guest byte order.
    """

    signal: int
    thread: ThreadSpec | None = None
    watch: tuple[Watch, Gva] | None = None
    cause: Cause | None = None
    registers: dict[int, bytes] = field(default_factory=dict)
    edge: HistoryEdge | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """``W``: the process ended with ``status``."""

    status: int
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Terminated:
    """``X``: the process was ended by ``signal``."""

    signal: int
    pid: int | None = None


StopReply = Stopped | Exited | Terminated

_CAUSES = {cause.value: cause for cause in Cause}
_WATCHES = {watch.value: watch for watch in Watch}
_EDGES = {edge.value: edge for edge in HistoryEdge}


def encode_stop(
    stop: StopReply, *, multiprocess: bool, causes: frozenset[Cause] = frozenset(Cause)
) -> bytes:
    """Payload of a stop reply; only such ``causes`` are told as the client knows."""
    match stop:
        case Stopped():
            return _encode_stopped(stop, multiprocess, causes)
        case Exited(status, pid):
            return b"W%02x" % status + _process(pid, multiprocess)
        case Terminated(signal, pid):
            return b"X%02x" % signal + _process(pid, multiprocess)


def _encode_stopped(stop: Stopped, multiprocess: bool, causes: frozenset[Cause]) -> bytes:
    pairs = [b"%02x:%b;" % (number, to_hex(value)) for number, value in stop.registers.items()]
    if stop.thread is not None:
        pairs.append(b"thread:%b;" % stop.thread.encode(multiprocess=multiprocess))
    if stop.watch is not None:
        pairs.append(b"%b:%x;" % (stop.watch[0].value, stop.watch[1]))
    if stop.cause in causes:
        pairs.append(b"%b:;" % stop.cause.value)
    if stop.edge is not None:
        pairs.append(b"replaylog:%b;" % stop.edge.value)
    return b"%c%02x" % (b"T" if pairs else b"S", stop.signal) + b"".join(pairs)


def _process(pid: int | None, multiprocess: bool) -> bytes:
    return b";process:%x" % (1 if pid is None else pid) if multiprocess else b""


def is_stop(payload: bytes) -> bool:
    """True if ``payload`` has the form of a stop reply; only context tells whether it is one."""
    return payload[:1] in (b"S", b"T", b"W", b"X")


def parse_stop(payload: bytes) -> StopReply:
    """Read a stop reply. Raises RemoteProtocolError."""
    fields = Fields(payload)
    kind = fields.take(1)
    if kind in (b"W", b"X"):
        number = fields.number("status")
        pid = fields.number("process") if fields.skip(b";process:") else None
        fields.end()
        return Exited(number, pid) if kind == b"W" else Terminated(number, pid)
    if kind not in (b"S", b"T"):
        raise RemoteProtocolError(f"{payload[:20]!r} is no stop reply")
    stop = _Builder(_parse_signal(fields))
    while kind == b"T" and fields:
        stop.add(fields.until(b":", "name"), fields.until(b";", "value"))
    fields.end()
    return stop.build()


def _parse_signal(fields: Fields) -> int:
    # Exactly two digits: a register number may follow at once.
    return Fields(fields.take(2)).number("signal")


class _Builder:
    """Collects the ``name:value;`` pairs of a ``T`` reply; unknown names are ignored, as the
    protocol asks."""

    def __init__(self, signal: int) -> None:
        self._signal = signal
        self._thread: ThreadSpec | None = None
        self._watch: tuple[Watch, Gva] | None = None
        self._cause: Cause | None = None
        self._edge: HistoryEdge | None = None
        self._registers: dict[int, bytes] = {}

    def add(self, name: bytes, value: bytes) -> None:
        if name == b"thread":
            self._thread = ThreadSpec.parse(Fields(value))
        elif name in _WATCHES:
            self._watch = (_WATCHES[name], Gva(Fields(value).number("address")))
        elif name in _CAUSES:
            self._cause = _CAUSES[name]
        elif name == b"replaylog":
            self._edge = _EDGES.get(value)
        elif _is_hex(name) and b"x" not in value:  # an x is an unavailable byte
            self._registers[int(name, 16)] = from_hex(value)

    def build(self) -> Stopped:
        return Stopped(
            self._signal, self._thread, self._watch, self._cause, self._registers, self._edge
        )


def _is_hex(name: bytes) -> bool:
    return bool(name) and not name.strip(b"0123456789abcdefABCDEF")
