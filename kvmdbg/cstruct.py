"""C structs as frozen dataclasses, and their bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, ClassVar, Self, get_type_hints

from _cffi_backend import buffer  # of any cdata; cffi itself is slow to import


@dataclass(frozen=True)
class Struct:
    """Base of a dataclass whose fields are (some of) those of the struct ``C_TYPE`` of ``FFI``.

    A field is an int, an enum of ints, bytes (an array of octets), a tuple of ints (any other
    array), or a dataclass (a struct inside). Fields of the C struct that are left out are padding
    to us: zero.
    """

    FFI: ClassVar[Any]
    C_TYPE: ClassVar[str]

    def encode(self) -> bytes:
        """The C struct's bytes."""
        return bytes(self.FFI.buffer(self.FFI.new(f"{self.C_TYPE} *", asdict(self))))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """From the C struct's bytes; ``data`` may be longer.

        Raises ValueError if it is shorter, or holds a number that an enum does not have.
        """
        if len(data) < cls.sizeof():
            raise ValueError(f"{cls.C_TYPE} takes {cls.sizeof()} bytes, not {len(data)}")
        decoded = decode_fields(cls, cls.FFI.from_buffer(f"{cls.C_TYPE} *", data, False))
        assert isinstance(decoded, cls)
        return decoded

    @classmethod
    def sizeof(cls) -> int:
        """In bytes."""
        return int(cls.FFI.sizeof(cls.C_TYPE))


def decode_fields(kind: Any, value: Any) -> Any:
    """The dataclass ``kind`` from a cffi struct with fields of the same names."""
    return kind(**{name: _decode(hint, getattr(value, name)) for name, hint in _hints(kind)})


@cache
def _hints(kind: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in fields(kind))


def _decode(hint: Any, value: Any) -> Any:
    if hint is int:
        return value
    if is_dataclass(hint):
        return decode_fields(hint, value)
    if hint is bytes:
        return bytes(buffer(value))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    return tuple(value)
