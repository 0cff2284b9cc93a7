"""A cursor over the fields of a payload, for the parsers of both roles.

Every method raises RemoteProtocolError, with half a sentence, at what the protocol does not allow.
"""

from __future__ import annotations

import re

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.octets import from_hex

_HEX = re.compile(rb"[0-9a-fA-F]+")
_MAX_DIGITS = 16


class Fields:
    """What is left of a payload."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """True while something is left."""
        return self._at < len(self._data)

    def number(self, what: str) -> int:
        """Unsigned hexadecimal number of at most 64 bits, big-endian, without a prefix."""
        match = _HEX.match(self._data, self._at)
        if not match:
            raise RemoteProtocolError(f"no {what} in hex")
        digits = match[0].lstrip(b"0")
        if len(digits) > _MAX_DIGITS:
            raise RemoteProtocolError(f"the {what} is wider than 64 bits")
        self._at = match.end()
        return int(digits or b"0", 16)

    def skip(self, literal: bytes) -> bool:
        """Step over ``literal``; False if it is not next."""
        if not self._data.startswith(literal, self._at):
            return False
        self._at += len(literal)
        return True

    def expect(self, literal: bytes) -> None:
        """Step over ``literal``, which must be next."""
        if not self.skip(literal):
            raise RemoteProtocolError(f"no {literal.decode()!r} where one belongs")

    def take(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        data = self._data[self._at : self._at + count]
        if len(data) < count:
            raise RemoteProtocolError(f"{count} bytes announced, {len(data)} sent")
        self._at += count
        return data

    def until(self, separator: bytes, what: str) -> bytes:
        """The bytes before ``separator``, which is stepped over."""
        end = self._data.find(separator, self._at)
        if end < 0:
            raise RemoteProtocolError(f"no {separator.decode()!r} after the {what}")
        data = self._data[self._at : end]
        self._at = end + len(separator)
        return data

    def rest(self) -> bytes:
        """All that is left."""
        data = self._data[self._at :]
        self._at = len(self._data)
        return data

    def hex_rest(self) -> bytes:
        """All that is left, as the bytes that it spells in hex."""
        return from_hex(self.rest())

    def flag(self) -> bool:
        """All that is left: ``:0`` or ``:1``."""
        self.expect(b":")
        number = self.number("flag")
        self.end()
        return number != 0

    def end(self) -> None:
        """Nothing may be left."""
        if self:
            raise RemoteProtocolError(f"{len(self._data) - self._at} bytes too many")
