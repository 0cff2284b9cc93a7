"""kvmdbg._native against plain Python and against this very process."""

import errno
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmdbg._native import ffi, lib


def encode(data: bytes) -> bytes:
    digits = bytearray(2 * len(data))
    lib.hex_encode(data, len(data), ffi.from_buffer(digits))
    return bytes(digits)


def decode(digits: bytes) -> bytes | None:
    data = bytearray(len(digits) // 2)
    status = lib.hex_decode(digits, len(data), ffi.from_buffer(data))
    return bytes(data) if status == 0 else None


@given(st.binary(max_size=4096))
def test_checksum_is_the_sum_modulo_256(data: bytes) -> None:
    assert lib.rsp_checksum(data, len(data)) == sum(data) % 256


@given(st.binary(max_size=4096))
def test_hex_agrees_with_python(data: bytes) -> None:
    assert encode(data) == data.hex().encode()
    assert decode(data.hex().encode()) == data
    assert decode(data.hex().upper().encode()) == data


@pytest.mark.parametrize(
    "digits", [b"0g", b"g0", b"00 0", b"-1", b"0/", b"0:", b"0@", b"0`", b"\xff0"]
)
def test_hex_decode_refuses_what_is_not_a_digit(digits: bytes) -> None:
    assert decode(digits) is None


def test_read_process_memory_reads_this_process() -> None:
    source = bytearray(os.urandom(100_000))
    target = bytearray(len(source))
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(source)))

    count = lib.read_process_memory(os.getpid(), address, ffi.from_buffer(target), len(target))

    assert count == len(source)
    assert target == source


def test_read_process_memory_is_short_at_an_unmapped_page() -> None:
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 2 * page) as mapping:
        mapping[:page] = b"\xa5" * page
        view = ffi.from_buffer(mapping)
        address = int(ffi.cast("uintptr_t", view))
        ffi.release(view)
        mapping.resize(page)  # the second page is gone, or the whole mapping has moved
        moved = ffi.from_buffer(mapping)
        assert int(ffi.cast("uintptr_t", moved)) == address
        ffi.release(moved)
        target = bytearray(2 * page)

        count = lib.read_process_memory(os.getpid(), address, ffi.from_buffer(target), len(target))

    assert count == page
    assert target[:page] == b"\xa5" * page


def test_read_process_memory_returns_minus_errno() -> None:
    target = bytearray(16)
    assert lib.read_process_memory(os.getpid(), 0, ffi.from_buffer(target), 16) == -errno.EFAULT
    assert lib.read_process_memory(2**30, 0, ffi.from_buffer(target), 16) == -errno.ESRCH
