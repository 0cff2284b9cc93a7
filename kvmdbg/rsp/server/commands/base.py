"""What all commands have in common, and the two that are none."""

from __future__ import annotations

from dataclasses import dataclass


class Command:
    """Base of all; each is a frozen dataclass."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class UnknownCommand(Command):
    """A packet that is not in the table; the protocol wants the empty reply."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class MalformedCommand(Command):
    """A packet that is not what its ``name`` promises; ``reason`` is half a sentence."""

    name: str
    reason: str
