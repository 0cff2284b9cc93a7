"""Breakpoints and watchpoints: what they are, and whose they are.

A breakpoint belongs to the clients that inserted it. The backend sees it once, while at least one
client wants it; a client that goes away takes only its own with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

import msgspec

from kvmdbg.addr import Gva
from kvmdbg.errors import BreakpointError
from kvmdbg.target.expressions import Expression

ClientId = str
"""Names a client of the VM, e.g. ``gdb-1`` or ``api-3``."""

_ADDRESSES = 1 << 64


class BreakpointKind(Enum):
    """RSP's kinds, by their number in the Z packet."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4

    @property
    def is_watchpoint(self) -> bool:
        """True for the kinds that watch data."""
        return self.value >= BreakpointKind.WRITE.value


class BreakpointSpec(msgspec.Struct, frozen=True):
    """A breakpoint as the backend knows it.

    ``length``: watched bytes; for breakpoints RSP's ``kind``, the size of the instruction it
    replaces (1 on x86).
    """

    kind: BreakpointKind
    address: Gva
    length: int = 1

    def __str__(self) -> str:
        what = "watchpoint" if self.kind.is_watchpoint else "breakpoint"
        return f"{self.kind.name.lower()} {what} at {self.address:#x}, length {self.length}"


class Placement(msgspec.Struct, frozen=True):
    """What became of an inserted breakpoint. ``how``: what stops the guest there, in a few words;
    ``note``: why it is that, or why it is not armed, as half a sentence."""

    spec: BreakpointSpec
    how: str
    armed: bool = True
    note: str = ""
    hits: int | None = None
    """How often it stopped the VM; None where nobody counts."""


class BreakpointStore(Protocol):
    """Capability of a backend: put breakpoints into the target and take them out.

    The VM is stopped during every call. Raises :exc:`~kvmdbg.errors.BreakpointError` when the
    target refuses one.
    """

    @property
    def kinds(self) -> frozenset[BreakpointKind]:
        """Kinds that this backend can insert."""
        ...

    async def insert(self, spec: BreakpointSpec) -> None:
        """Insert ``spec``, which is not inserted yet."""
        ...

    async def remove(self, spec: BreakpointSpec) -> None:
        """Remove ``spec``, which is inserted."""
        ...

    async def describe(self) -> list[Placement]:
        """What became of each that is inserted, by address."""
        ...


class BreakpointManager:
    """Reference-counts breakpoints by client on top of one store."""

    def __init__(self, store: BreakpointStore) -> None:
        self._store = store
        self._owners: dict[BreakpointSpec, dict[ClientId, Expression | None]] = {}

    @property
    def kinds(self) -> frozenset[BreakpointKind]:
        """Kinds that can be inserted."""
        return self._store.kinds

    @property
    def inserted(self) -> dict[BreakpointSpec, frozenset[ClientId]]:
        """Every inserted breakpoint with the clients that hold it."""
        return {spec: frozenset(clients) for spec, clients in self._owners.items()}

    def conditions(self, spec: BreakpointSpec) -> Mapping[ClientId, Expression]:
        """The conditions of ``spec``, of those who hold it under one."""
        owners = self._owners.get(spec, {})
        return {client: found for client, found in owners.items() if found is not None}

    async def insert(
        self, client: ClientId, spec: BreakpointSpec, condition: Expression | None = None
    ) -> None:
        """Make ``client`` a holder of ``spec``; a second time is no error, as RSP wants it, and
        its condition is the one that counts."""
        if spec.kind not in self._store.kinds:
            raise BreakpointError(f"this engine has no {spec.kind.name.lower()} breakpoints")
        _check_place(spec)
        owners = self._owners.get(spec)
        if owners is None:
            await self._store.insert(spec)
            owners = self._owners[spec] = {}
        owners[client] = condition

    async def remove(self, client: ClientId, spec: BreakpointSpec) -> None:
        """``client`` no longer wants ``spec``; not holding it is no error, as RSP wants it."""
        owners = self._owners.get(spec)
        if owners is None or client not in owners:
            return
        if len(owners) == 1:
            await self._store.remove(spec)
            del self._owners[spec]
        else:
            del owners[client]

    def is_at(self, address: Gva) -> bool:
        """True if the instruction at ``address`` has a breakpoint."""
        return any(s.address == address and not s.kind.is_watchpoint for s in self._owners)

    def held_by(self, client: ClientId) -> list[BreakpointSpec]:
        """The breakpoints that ``client`` holds."""
        return [spec for spec, owners in self._owners.items() if client in owners]

    async def drop(self, client: ClientId) -> None:
        """Remove all that ``client`` holds."""
        for spec in self.held_by(client):
            await self.remove(client, spec)


def _check_place(spec: BreakpointSpec) -> None:
    if spec.kind.is_watchpoint and spec.length < 1:
        raise BreakpointError(f"the {spec} is refused: there is no byte to watch")
    if spec.address < 0 or spec.address + spec.length > _ADDRESSES:
        raise BreakpointError(f"the {spec} is refused: addresses are 64 bits")
