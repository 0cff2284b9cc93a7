"""Whose unix sockets are whose, asked of the kernel through unix_diag.

Source: sock_diag(7). Only sockets of our own network namespace show. pyroute2's synchronous
sockets refuse to work in a thread that runs an event loop: call from another one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from kvmdbg.machine.processes import pids, socket_inodes


@dataclass(frozen=True)
class UnixSockets:
    """Unix stream sockets at one moment, by inode; an abstract name starts with a NUL."""

    listening: dict[int, str] = field(default_factory=dict)
    accepted: dict[int, tuple[str, int]] = field(default_factory=dict)
    """The server's end of a connection: the name it was accepted on, and the peer's inode."""

    def listeners(self, name: str) -> set[int]:
        """Inodes of the sockets that listen on ``name``: several where one was replaced."""
        return {inode for inode, listening in self.listening.items() if listening == name}

    def client_of(self, name: str, server_inodes: set[int]) -> int | None:
        """Inode of a client connected to ``name``, served by one of those sockets.

        A client that has closed its end has no inode any more, and does not count.
        """
        for inode, (accepted_on, peer) in self.accepted.items():
            if accepted_on == name and inode in server_inodes and peer:
                return peer
        return None


def survey() -> UnixSockets:
    """Every listening or connected unix socket that has a name."""
    # Imported late: it takes as long as all the rest of a command, and not every one asks.
    from pyroute2 import DiagSocket  # type: ignore[import-untyped]
    from pyroute2.netlink.diag import (  # type: ignore[import-untyped]
        SS_ESTABLISHED,
        SS_LISTEN,
        UDIAG_SHOW_NAME,
        UDIAG_SHOW_PEER,
        UDIAG_SHOW_VFS,
    )

    sockets = UnixSockets()
    with DiagSocket() as diag:
        diag.bind()
        for message in diag.get_sock_stats(
            states=1 << SS_LISTEN | 1 << SS_ESTABLISHED,
            show=UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER,
        ):
            name = message.get_attr("UNIX_DIAG_NAME")
            if name is None:
                continue
            if message.get_attr("UNIX_DIAG_VFS") is None:
                name = f"\0{name}"
            inode = message["udiag_ino"]
            if message["udiag_state"] == SS_LISTEN:
                sockets.listening[inode] = name
            else:
                sockets.accepted[inode] = (name, message.get_attr("UNIX_DIAG_PEER") or 0)
    return sockets


def holder_of(inode: int) -> int | None:
    """Pid of a process, other than this one, that has the socket open; None where none shows."""
    for pid in pids():
        if pid != os.getpid() and inode in socket_inodes(pid):
            return pid
    return None
