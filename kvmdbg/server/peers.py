"""Who may connect: processes of the user whose VM it is, and nobody else, not even root.

Whoever debugs a VM can do with it, and through QEMU's monitor with the account that runs it,
what they like; so the kernel is asked who the peer is, before a byte is answered.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any

from kvmdbg.errors import PeerRefused

_UCRED = struct.Struct("iII")
"""struct ucred of unix(7): pid, uid, gid."""

# ESTABLISHED and CLOSE_WAIT of include/net/tcp_states.h, as a mask.
_LIVE_STATES = 1 << 1 | 1 << 8


async def admit(sock: socket.socket) -> int:
    """Check the peer of a connected unix or TCP socket; returns its pid, 0 where unknown.

    Raises PeerRefused.
    """
    if sock.family == socket.AF_UNIX:
        return require_same_uid(sock)
    _require(await asyncio.to_thread(_tcp_peer_uid, sock))
    return 0


def require_same_uid(sock: socket.socket) -> int:
    """Check the peer of a connected unix socket; returns its pid. Raises PeerRefused."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    _require(uid)
    return int(pid)


def _require(uid: int | None) -> None:
    own = os.geteuid()
    if uid is None:
        raise PeerRefused("a client was refused: the kernel does not say whose connection it is")
    if uid != own:
        raise PeerRefused(f"a client was refused: it is user {uid}'s, and the VM is user {own}'s")


def _tcp_peer_uid(sock: socket.socket) -> int | None:
    """The uid that owns the other end of a loopback connection; None unless exactly one does.

    Asks the kernel by sock_diag(7). Blocks for a few milliseconds.
    """
    from pyroute2 import DiagSocket  # type: ignore[import-untyped]

    try:
        (client, client_port), (server, server_port) = (
            sock.getpeername()[:2],
            sock.getsockname()[:2],
        )
    except OSError:
        return None
    with DiagSocket() as diag:
        diag.bind()
        found = diag.get_sock_stats(
            family=sock.family, states=_LIVE_STATES, sport=client_port, dport=server_port
        )
    uids = [entry["idiag_uid"] for entry in found if _is(entry, client, server)]
    return uids[0] if len(uids) == 1 else None


def _is(entry: Any, client: str, server: str) -> bool:
    # A socket that its process has closed has no inode any more, and claims to be root's.
    ends = (entry["idiag_src"], entry["idiag_dst"])
    return ends == (client, server) and entry["idiag_inode"] != 0
