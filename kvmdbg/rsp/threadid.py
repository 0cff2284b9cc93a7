"""Thread-ids: ``TID``, ``pPID.TID``, ``pPID``, where 0 is any and -1 all.

Source: GDB manual, "Packets", thread-id syntax.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.addr import ThreadId
from kvmdbg.rsp.fields import Fields

ANY = ThreadId(0)
ALL = ThreadId(-1)


@dataclass(frozen=True, slots=True)
class ThreadSpec:
    """Names a thread, any or all; ``pid`` is None where the peer left the process out."""

    tid: ThreadId
    pid: int | None = None

    @property
    def is_one(self) -> bool:
        """True if it names exactly one thread."""
        return self.tid > 0

    def encode(self, *, multiprocess: bool) -> bytes:
        """Wire form; the process is 1 unless given."""
        if not multiprocess:
            return _signed(self.tid)
        return b"p%b.%b" % (_signed(1 if self.pid is None else self.pid), _signed(self.tid))

    @classmethod
    def parse(cls, fields: Fields) -> ThreadSpec:
        """Take a thread-id of either syntax. Raises RemoteProtocolError."""
        if not fields.skip(b"p"):
            return cls(ThreadId(_parse_signed(fields)))
        pid = _parse_signed(fields)
        return cls(ThreadId(_parse_signed(fields)) if fields.skip(b".") else ALL, pid)


def _signed(number: int) -> bytes:
    return b"-1" if number < 0 else b"%x" % number


def _parse_signed(fields: Fields) -> int:
    return -1 if fields.skip(b"-1") else fields.number("thread-id")
