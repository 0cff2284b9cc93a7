"""Packets on the wire: ``$payload#cs``, acknowledgements, Ctrl-C, escapes and run lengths.

The decoder yields the same events however the stream is split, takes time linear in its length,
and keeps no more than one packet of memory.

Source: GDB manual, "Overview" of the remote protocol.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.octets import checksum

MAX_PACKET = 0x10000
"""Default limit for the bytes between ``$`` and ``#``; four times the 16 KiB gdb can rely on."""

INTERRUPT = b"\x03"
ACK = b"+"
NACK = b"-"


class Role(Enum):
    """Which side we are; the value matches what may begin a token from the other side."""

    SERVER = rb"[$+\-\x03]"
    CLIENT = rb"[$+\-%]"


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet with a good checksum; ``payload`` is unescaped and expanded."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Notification:
    """``%payload#cs`` (client role only): is never acknowledged."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """``+``."""


@dataclass(frozen=True, slots=True)
class Nack:
    """``-``: the peer wants our last packet again."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Ctrl-C, the byte 0x03 outside a packet (server role only)."""


@dataclass(frozen=True, slots=True)
class BadChecksum:
    """A packet was damaged on its way; sending it again may help."""

    expected: int
    received: bytes


@dataclass(frozen=True, slots=True)
class BadPacket:
    """A packet that arrived whole but cannot be accepted, so that sending it again is no use."""

    reason: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """``count`` bytes that belong to no packet were skipped."""

    count: int


FrameEvent = Packet | Notification | Ack | Nack | Interrupt | BadChecksum | BadPacket | Garbage

_SINGLE: dict[int, FrameEvent] = {ord("+"): Ack(), ord("-"): Nack(), 0x03: Interrupt()}
_PACKET_END = re.compile(rb"[#$]")  # an unescaped $ is a new packet: the '#' of this one was lost


class Decoder:
    """Cuts the stream of one direction into events."""

    def __init__(self, role: Role, max_packet: int = MAX_PACKET) -> None:
        self._role = role
        self._token = re.compile(role.value)
        self._max_packet = max_packet
        self._buffer = bytearray()
        self._open: int | None = None  # the byte that began the packet we are in
        self._scanned = 0  # that packet's bytes in the buffer, known to hold no end
        self._dropped = 0  # that packet's bytes no longer in the buffer: it is too large
        self._garbage = 0

    def feed(self, data: bytes) -> list[FrameEvent]:
        """The events that ``data`` completes."""
        self._buffer += data
        events: list[FrameEvent] = []
        while self._buffer and (
            self._outside(events) if self._open is None else self._inside(events)
        ):
            pass
        return events

    def _outside(self, events: list[FrameEvent]) -> bool:
        start = _find(self._token, self._buffer, 0)
        if start < 0:
            self._garbage += len(self._buffer)
            self._buffer.clear()
            return False
        self._garbage += start
        if self._garbage:
            events.append(Garbage(self._garbage))
            self._garbage = 0
        byte = self._buffer[start]
        del self._buffer[: start + 1]
        if byte in _SINGLE:
            events.append(_SINGLE[byte])
        else:
            self._open = byte
        return True

    def _inside(self, events: list[FrameEvent]) -> bool:
        end = _find(_PACKET_END, self._buffer, self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            if self._dropped + self._scanned > self._max_packet:
                self._dropped += self._scanned
                self._scanned = 0
                self._buffer.clear()
            return False
        if self._buffer[end] == ord("$"):
            self._garbage += 1 + self._dropped + end
            del self._buffer[:end]
            self._close()
            return True
        if len(self._buffer) < end + 3:
            self._scanned = end
            return False
        if self._dropped + end > self._max_packet:
            events.append(BadPacket(f"it is longer than {self._max_packet} bytes"))
        else:
            events.append(
                self._decode(bytes(self._buffer[:end]), bytes(self._buffer[end + 1 : end + 3]))
            )
        del self._buffer[: end + 3]
        self._close()
        return True

    def _close(self) -> None:
        self._open = None
        self._scanned = self._dropped = 0

    def _decode(self, raw: bytes, digits: bytes) -> FrameEvent:
        expected = checksum(raw)
        if digits.lower() != b"%02x" % expected:
            return BadChecksum(expected, digits)
        try:
            # Run lengths occur in replies only; a request may hold a plain '*'.
            payload = unescape(expand(raw) if self._role is Role.CLIENT else raw)
        except RemoteProtocolError as error:
            return BadPacket(str(error))
        return Notification(payload) if self._open == ord("%") else Packet(payload)


def _find(pattern: re.Pattern[bytes], buffer: bytearray, start: int) -> int:
    # The match must not outlive this call: it locks the buffer's size.
    match = pattern.search(buffer, start)
    return match.start() if match else -1


def encode_packet(payload: bytes, *, run_lengths: bool = False) -> bytes:
    """The packet that carries ``payload``; ``run_lengths`` compresses it (replies only)."""
    raw = escape(payload)
    if run_lengths:
        raw = compress(raw)
    return b"$%b#%02x" % (raw, checksum(raw))


def encode_notification(payload: bytes) -> bytes:
    """The notification that carries ``payload``; it is never acknowledged, nor sent again."""
    return b"%%%b" % encode_packet(payload)[1:]


_SPECIAL = re.compile(rb"[#$}*]")
_ESCAPED = re.compile(rb"\}(.?)", re.DOTALL)
# A run that begins with the second byte of an escape is left alone: peers differ in whether they
# expand before or after unescaping.
_RUN = re.compile(rb"(?<!\})(.)\1{3,}", re.DOTALL)
_REPEATED = re.compile(rb"([^*])((?:\*.)+)|\*", re.DOTALL)
_LONGEST_RUN = 97
_COUNT_BIAS = 29


def escape(data: bytes) -> bytes:
    """``data`` with ``#``, ``$``, ``}`` and ``*`` replaced by ``}`` and the byte xor 0x20."""
    return _SPECIAL.sub(lambda m: b"}%c" % (m[0][0] ^ 0x20), data)


def unescape(raw: bytes) -> bytes:
    """Undo :func:`escape`. Raises RemoteProtocolError at a ``}`` that escapes nothing."""
    if b"}" not in raw:
        return raw

    def original(match: re.Match[bytes]) -> bytes:
        if not match[1]:
            raise RemoteProtocolError("an escape character is its last")
        return bytes((match[1][0] ^ 0x20,))

    return _ESCAPED.sub(original, raw)


def compress(raw: bytes) -> bytes:
    """Run-length encode escaped bytes: ``00000`` becomes ``0*!``."""
    return _RUN.sub(_compress_run, raw)


def _compress_run(match: re.Match[bytes]) -> bytes:
    byte, left = match[1], len(match[0])
    pieces = []
    while left > 3:
        length = min(left, _LONGEST_RUN + 1)
        while length - 1 + _COUNT_BIAS in b"#$+-":  # these would end the packet or look like acks
            length -= 1
        pieces.append(b"%b*%c" % (byte, length - 1 + _COUNT_BIAS))
        left -= length
    return b"".join(pieces) + byte * left


def expand(raw: bytes) -> bytes:
    """Undo :func:`compress`. Raises RemoteProtocolError at a run length that makes no sense."""
    if b"*" not in raw:
        return raw
    return _REPEATED.sub(_expand_run, raw)


def _expand_run(match: re.Match[bytes]) -> bytes:
    if not match[1]:
        raise RemoteProtocolError("a run length has nothing to repeat")
    counts = match[2][1::2]
    if min(counts) < 32 or max(counts) > 126:
        raise RemoteProtocolError("a run length is out of range")
    return match[1] * (1 + sum(counts) - _COUNT_BIAS * len(counts))
