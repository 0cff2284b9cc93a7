"""The cheapest possible RSP client: what it measures is the server."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from tests.support import naive_rsp

TIMEOUT = 120.0
"""Seconds that a kernel under TCG has to get to a breakpoint."""


class Wire:
    """A blocking connection to a stub."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(str(path))
        self._acks = True
        self._acks = self.ask(b"QStartNoAckMode") != b"OK"

    def close(self) -> None:
        """Detach, so that the server lets go of the VM."""
        self.ask(b"D;1")
        self._socket.close()

    def ask(self, payload: bytes) -> bytes:
        """The reply, as it was on the wire between ``$`` and ``#``."""
        return self._exchange(naive_rsp.packet(payload))

    def _exchange(self, packet: bytes) -> bytes:
        self._socket.sendall(packet)
        data = b""
        while data[-3:-2] != b"#":
            data += self._socket.recv(1 << 17)
        if self._acks:
            self._socket.sendall(b"+")
        return data[data.index(b"$") + 1 : -3]

    def round_trip(self, payload: bytes, *, rounds: int, repeats: int) -> list[float]:
        """Seconds per round trip, once per repeat."""
        packet = naive_rsp.packet(payload)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in range(rounds):
                self._exchange(packet)
            times.append((time.perf_counter() - start) / rounds)
        return times

    def run_to(self, address: int) -> None:
        """Run until ``address`` is about to be executed."""
        assert self.ask(b"Z1,%x,1" % address) == b"OK"
        assert self.ask(b"vCont;c")[:1] == b"T"
        assert self.ask(b"z1,%x,1" % address) == b"OK"
