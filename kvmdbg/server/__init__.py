"""gdb's side of a VM: listeners, who may connect, sessions, and a handler for every packet.

What a packet does is in :mod:`kvmdbg.server.table`; how it looks is :mod:`kvmdbg.rsp`'s business.
"""

from __future__ import annotations

from kvmdbg.server.host import Host
from kvmdbg.server.listeners import RspServer

__all__ = ["Host", "RspServer"]
