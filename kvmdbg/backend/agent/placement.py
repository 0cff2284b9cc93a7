"""Where breakpoints and watchpoints fit: rules without I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvmdbg.addr import Gva

_LENGTHS = (8, 4, 2, 1)  # bytes that a debug register watches, aligned to themselves


@dataclass(frozen=True)
class Abilities:
    """What this host's KVM does, as doctor saw it."""

    kernel_int3: bool = True
    """An int3 in ring 0 comes to us, and not to the guest."""
    user_int3: bool = True
    kernel_watch: bool = True
    """An access to watched memory in ring 0 does."""
    resume_flag: bool = False
    """RFLAGS.RF lets a vCPU go on from a hardware breakpoint."""


@dataclass(frozen=True)
class Piece:
    """What one debug register watches."""

    address: Gva
    length: int


def pieces(address: Gva, length: int) -> Iterator[Piece]:
    """Cut what is watched to what debug registers can: no byte less, and none more."""
    end = address + length
    at = address
    while at < end:
        size = next(n for n in _LENGTHS if at % n == 0 and at + n <= end)
        yield Piece(at, size)
        at = Gva(at + size)
