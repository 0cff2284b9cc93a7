"""The guest's TSC, which the agent keeps still while the VM is stopped: said where it cannot.

QEMU keeps its own clocks and kvmclock across a stop, but not the TSC.
"""

from __future__ import annotations

from collections.abc import Callable

from kvmdbg.agent.client import AgentClient
from kvmdbg.wire.structs import ClockState


class GuestClock:
    """Whether it works is seen at the first stop that lasts a while."""

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent
        self.state = ClockState.UNSEEN
        self._tell: Callable[[str], None] = lambda text: None

    def on_notice(self, tell: Callable[[str], None]) -> None:
        """See :class:`kvmdbg.target.capabilities.Notifies`."""
        self._tell = tell

    async def resumed(self) -> None:
        """The guest runs on: what of its clock?"""
        if self.state is not ClockState.UNSEEN:
            return
        self.state = (await self._agent.clock()).state
        if self.state is ClockState.DEAF:
            self._tell(
                "the guest's TSC runs on while it is stopped: this host's KVM does not move it"
            )
