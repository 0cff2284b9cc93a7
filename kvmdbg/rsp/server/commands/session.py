"""Commands about the connection, and about the process as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvmdbg.rsp.features import parse_features
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands.base import Command


@dataclass(frozen=True, slots=True)
class Supported(Command):
    """``qSupported``: the client's features, as :mod:`kvmdbg.rsp.features` reads them."""

    features: Mapping[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """True if the client announced ``name+``."""
        return self.features.get(name) == "+"


@dataclass(frozen=True, slots=True)
class StartNoAckMode(Command):
    """``QStartNoAckMode``."""


@dataclass(frozen=True, slots=True)
class Attached(Command):
    """``qAttached``: was the process attached to, rather than created?"""


@dataclass(frozen=True, slots=True)
class Detach(Command):
    """``D``."""

    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Kill(Command):
    """``k`` and ``vKill``; only the latter, which names a process, gets a reply."""

    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Attach(Command):
    """``vAttach``."""

    pid: int


@dataclass(frozen=True, slots=True)
class ExtendedMode(Command):
    """``!``: the connection is to outlive the process."""


@dataclass(frozen=True, slots=True)
class Restart(Command):
    """``R``; gets no reply."""


@dataclass(frozen=True, slots=True)
class NonStop(Command):
    """``QNonStop``: shall threads run and stop each for itself?"""

    wanted: bool


@dataclass(frozen=True, slots=True)
class CatchSyscalls(Command):
    """``QCatchSyscalls``: shall system calls stop the process, all or those with ``numbers``?"""

    wanted: bool
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class MustReplyEmpty(Command):
    """``vMustReplyEmpty``: how does an unknown v packet look?"""


@dataclass(frozen=True, slots=True)
class SymbolLookup(Command):
    """``qSymbol``: the client offers to look up symbols, or returns one."""

    name: str
    value: int | None = None


@dataclass(frozen=True, slots=True)
class TraceStatus(Command):
    """``qTStatus``."""


@dataclass(frozen=True, slots=True)
class Offsets(Command):
    """``qOffsets``: where were the sections loaded?"""


def parse_supported(fields: Fields) -> Supported:
    """``qSupported[:FEATURE[;FEATURE]…]``"""
    features = parse_features(fields.rest()) if fields.skip(b":") else {}
    fields.end()
    return Supported(features)


def parse_no_ack(fields: Fields) -> StartNoAckMode:
    """``QStartNoAckMode``"""
    fields.end()
    return StartNoAckMode()


def parse_attached(fields: Fields) -> Attached:
    """``qAttached[:PID]``"""
    if fields.skip(b":"):
        fields.number("process")
    fields.end()
    return Attached()


def parse_detach(fields: Fields) -> Detach:
    """``D[;PID]``"""
    pid = fields.number("process") if fields.skip(b";") else None
    fields.end()
    return Detach(pid)


def parse_k(fields: Fields) -> Kill:
    """``k``"""
    fields.end()
    return Kill()


def parse_kill(fields: Fields) -> Kill:
    """``vKill;PID``"""
    return Kill(_process(fields))


def parse_attach(fields: Fields) -> Attach:
    """``vAttach;PID``"""
    return Attach(_process(fields))


def parse_extended_mode(fields: Fields) -> ExtendedMode:
    """``!``"""
    fields.end()
    return ExtendedMode()


def parse_restart(fields: Fields) -> Restart:
    """``RXX``: the number means nothing."""
    fields.rest()
    return Restart()


def parse_non_stop(fields: Fields) -> NonStop:
    """``QNonStop:0`` or ``:1``"""
    return NonStop(fields.flag())


def parse_catch_syscalls(fields: Fields) -> CatchSyscalls:
    """``QCatchSyscalls:0`` or ``:1[;NUMBER]…``"""
    fields.expect(b":")
    wanted = fields.number("flag") != 0
    numbers = []
    while fields.skip(b";"):
        numbers.append(fields.number("system call"))
    fields.end()
    return CatchSyscalls(wanted, tuple(numbers))


def parse_must_reply_empty(fields: Fields) -> MustReplyEmpty:
    """``vMustReplyEmpty``"""
    fields.rest()
    return MustReplyEmpty()


def parse_symbol(fields: Fields) -> SymbolLookup:
    """``qSymbol:[VALUE]:[XX…]``"""
    fields.expect(b":")
    value = None if fields.skip(b":") else fields.number("value")
    if value is not None:
        fields.expect(b":")
    return SymbolLookup(fields.hex_rest().decode(errors="replace"), value)


def parse_trace_status(fields: Fields) -> TraceStatus:
    """``qTStatus``"""
    fields.rest()
    return TraceStatus()


def parse_offsets(fields: Fields) -> Offsets:
    """``qOffsets``"""
    fields.end()
    return Offsets()


def _process(fields: Fields) -> int:
    fields.expect(b";")
    pid = fields.number("process")
    fields.end()
    return pid
