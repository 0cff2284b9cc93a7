"""``? c C s S bc bs vCont``: why the target stopped, and how it runs on, or back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kvmdbg.addr import Gva
from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands.base import Command
from kvmdbg.rsp.threadid import ThreadSpec


@dataclass(frozen=True, slots=True)
class StopReasonQuery(Command):
    """``?``."""


class ResumeKind(Enum):
    """What a vCont action does; the value is its letter."""

    CONTINUE = b"c"
    STEP = b"s"
    RANGE_STEP = b"r"
    STOP = b"t"


@dataclass(frozen=True, slots=True)
class ResumeAction:
    """One action of ``vCont``; ``thread`` None means every thread without one of its own.

    ``signal`` is to be delivered; ``range`` is [start, end) of a range step.
    """

    kind: ResumeKind
    thread: ThreadSpec | None = None
    signal: int | None = None
    range: tuple[Gva, Gva] | None = None


@dataclass(frozen=True, slots=True)
class VCont(Command):
    """``vCont``: for each thread, the first action that names it counts."""

    actions: tuple[ResumeAction, ...]


@dataclass(frozen=True, slots=True)
class VContQuery(Command):
    """``vCont?``: which actions are there."""


@dataclass(frozen=True, slots=True)
class NextStop(Command):
    """``vStopped``: the stop last told is known, what is the next?"""


@dataclass(frozen=True, slots=True)
class StopAll(Command):
    """``vCtrlC``: all threads shall stop, in non-stop mode."""


@dataclass(frozen=True, slots=True)
class ResumeThread(Command):
    """``c C s S``: the thread that ``Hc`` chose runs on, from ``address`` if there is one."""

    step: bool
    signal: int | None = None
    address: Gva | None = None


@dataclass(frozen=True, slots=True)
class RunBack(Command):
    """``bc`` and ``bs``: the target runs backwards, with ``step`` by one instruction."""

    step: bool


def parse_stop_reason(fields: Fields) -> StopReasonQuery:
    """``?``"""
    fields.end()
    return StopReasonQuery()


def parse_c(fields: Fields) -> ResumeThread:
    """``c[ADDR]``"""
    return _resume(fields, step=False, signal=None)


def parse_s(fields: Fields) -> ResumeThread:
    """``s[ADDR]``"""
    return _resume(fields, step=True, signal=None)


def parse_c_signal(fields: Fields) -> ResumeThread:
    """``CSIG[;ADDR]``"""
    return _resume_with_signal(fields, step=False)


def parse_s_signal(fields: Fields) -> ResumeThread:
    """``SSIG[;ADDR]``"""
    return _resume_with_signal(fields, step=True)


def _resume_with_signal(fields: Fields, *, step: bool) -> ResumeThread:
    signal = fields.number("signal")
    if fields:
        fields.expect(b";")
    return _resume(fields, step=step, signal=signal)


def _resume(fields: Fields, *, step: bool, signal: int | None) -> ResumeThread:
    address = Gva(fields.number("address")) if fields else None
    fields.end()
    return ResumeThread(step, signal, address)


def parse_back(fields: Fields) -> RunBack:
    """``bc`` or ``bs``"""
    direction = fields.take(1)
    fields.end()
    if direction not in (b"c", b"s"):
        raise RemoteProtocolError(f"{direction!r} is no way to run backwards")
    return RunBack(direction == b"s")


def parse_vcont_query(fields: Fields) -> VContQuery:
    """``vCont?``"""
    fields.end()
    return VContQuery()


def parse_next_stop(fields: Fields) -> NextStop:
    """``vStopped``"""
    fields.end()
    return NextStop()


def parse_stop_all(fields: Fields) -> StopAll:
    """``vCtrlC``"""
    fields.end()
    return StopAll()


def parse_vcont(fields: Fields) -> VCont:
    """``vCont[;ACTION[:THREAD-ID]]…``"""
    actions = []
    while fields:
        fields.expect(b";")
        actions.append(_action(fields))
    if not actions:
        raise RemoteProtocolError("it has no action")
    return VCont(tuple(actions))


def _action(fields: Fields) -> ResumeAction:
    letter = fields.take(1)
    signal = addresses = None
    match letter:
        case b"c" | b"s" | b"t":
            pass
        case b"C" | b"S":
            signal = fields.number("signal")
        case b"r":
            start = Gva(fields.number("start"))
            fields.expect(b",")
            addresses = (start, Gva(fields.number("end")))
        case _:
            raise RemoteProtocolError(f"{letter!r} is no action")
    thread = ThreadSpec.parse(fields) if fields.skip(b":") else None
    return ResumeAction(ResumeKind(letter.lower()), thread, signal, addresses)
