"""What the server needs of the process that it runs in, the VM's owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kvmdbg.target.breakpoints import ClientId
from kvmdbg.target.memorymap import MemoryRegion
from kvmdbg.target.vm import Vm


class Host(Protocol):
    """The owner of one VM."""

    @property
    def vm(self) -> Vm:
        """The VM."""
        ...

    @property
    def attached(self) -> bool:
        """True if the VM was running before kvmdbg came, so that gdb shall detach, not kill."""
        ...

    @property
    def clients(self) -> Mapping[ClientId, int]:
        """All clients of the VM, of whatever protocol, with their pids, 0 where not known."""
        ...

    @property
    def symbol_file(self) -> Path | None:
        """The VM's symbol file; None where none is known."""
        ...

    async def memory_map(self) -> Sequence[MemoryRegion]:
        """The guest's physical memory, ascending. Raises MonitorError."""
        ...

    async def kill(self) -> None:
        """gdb said ``kill``: end the VM, or do nothing where it is to be left alone."""
        ...

    def client_joined(self, client: ClientId, pid: int) -> None:
        """A client was admitted; ``pid`` is 0 where it is not known."""
        ...

    def client_left(self, client: ClientId, *, orderly: bool) -> None:
        """It left; ``orderly`` if it said so first."""
        ...
