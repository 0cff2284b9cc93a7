"""Checksums and hexadecimal digits, the two codings of every packet; the loops are in C."""

from __future__ import annotations

from kvmdbg._native import ffi, lib
from kvmdbg.errors import RemoteProtocolError


def checksum(data: bytes) -> int:
    """Sum of the bytes modulo 256."""
    return lib.rsp_checksum(data, len(data))


def to_hex(data: bytes | bytearray) -> bytes:
    """Two lower-case digits per byte."""
    digits = bytearray(2 * len(data))
    lib.hex_encode(ffi.from_buffer(data), len(data), ffi.from_buffer(digits))
    return bytes(digits)


def from_hex(digits: bytes) -> bytes:
    """The bytes that ``digits`` spell. Raises RemoteProtocolError."""
    length, odd = divmod(len(digits), 2)
    if odd:
        raise RemoteProtocolError("an odd number of hex digits")
    data = bytearray(length)
    if lib.hex_decode(digits, length, ffi.from_buffer(data)) != 0:
        raise RemoteProtocolError("a character that is not a hex digit")
    return bytes(data)
