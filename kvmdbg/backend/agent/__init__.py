"""The engine over the agent inside QEMU, which debugs a guest that runs under KVM.

The agent does what has to be done inside the QEMU process; what a breakpoint is made of, and what a
stop means, is decided here.
"""

from __future__ import annotations

from kvmdbg.backend.agent.engine import AgentEngine
from kvmdbg.backend.agent.placement import Abilities

__all__ = ["Abilities", "AgentEngine"]
