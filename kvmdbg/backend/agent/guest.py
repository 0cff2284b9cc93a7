"""What the agent engine has to know of each architecture's guests.

To add one: implement :class:`GuestArch` beside :mod:`~.x86`, and name it in :func:`guest_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kvmdbg.addr import Gva
from kvmdbg.agent.client import AgentClient
from kvmdbg.arch import Architecture
from kvmdbg.backend.agent.state import Source
from kvmdbg.errors import AttachError


class GuestArch(Protocol):
    """``number`` is KVM's number of the vCPU whose state and page tables are meant."""

    @property
    def sources(self) -> Sequence[Source[Any]]:
        """Where its registers are."""
        ...

    async def is_early(self, agent: AgentClient, number: int) -> bool:
        """True before paging is on: whatever is in memory may still be overwritten."""
        ...

    async def is_patched(self, agent: AgentClient, number: int, address: Gva) -> bool:
        """True if a kernel may patch the instruction at ``address``, which is mapped, and would
        mind to find other bytes there than its own."""
        ...

    async def may_have_read(self, agent: AgentClient, number: int, watched: range) -> bool:
        """The vCPU has just accessed one of the ``watched`` addresses: False if certainly by
        writing only."""
        ...


def guest_of(arch: Architecture) -> GuestArch:
    """Raises AttachError for an architecture that the engine does not know."""
    if arch.name == "x86_64":
        # Here, as what decodes x86 is installed on x86 hosts only.
        from kvmdbg.backend.agent.x86 import X86Guest

        return X86Guest()
    raise AttachError(f"the agent engine does not know {arch.name} guests yet: use --engine stub")
