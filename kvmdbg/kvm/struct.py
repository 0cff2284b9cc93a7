"""The kernel's structs as frozen dataclasses, and their bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Self, get_type_hints

from kvmdbg.kvm._abi import ffi


@dataclass(frozen=True)
class Struct:
    """Base of a dataclass whose fields are (some of) those of the C struct ``C_TYPE``.

    A field is an int, bytes (an array of octets), a tuple of ints (any other array), or a dataclass
    (a struct inside). Fields of the C struct that are left out are padding to us: zero.
    """

    C_TYPE: ClassVar[str]

    def encode(self) -> bytes:
        """The C struct's bytes."""
        return bytes(ffi.buffer(ffi.new(f"{self.C_TYPE} *", asdict(self))))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """From the C struct's bytes; ``data`` may be longer. Raises ValueError if it is shorter."""
        if len(data) < cls.size():
            raise ValueError(f"{cls.C_TYPE} takes {cls.size()} bytes, not {len(data)}")
        decoded = decode_fields(cls, ffi.from_buffer(f"{cls.C_TYPE} *", data, False))
        assert isinstance(decoded, cls)
        return decoded

    @classmethod
    def size(cls) -> int:
        """sizeof, in bytes."""
        return ffi.sizeof(cls.C_TYPE)


def decode_fields(kind: Any, value: Any) -> Any:
    """The dataclass ``kind`` from a cffi struct with fields of the same names."""
    hints = get_type_hints(kind)
    return kind(**{f.name: _decode(hints[f.name], getattr(value, f.name)) for f in fields(kind)})


def _decode(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return decode_fields(hint, value)
    if hint is bytes:
        return bytes(ffi.buffer(value))
    return value if hint is int else tuple(value)
