"""Payloads of requests, and readers of their replies (which raise RemoteProtocolError)."""

from __future__ import annotations

from collections.abc import Iterable

from kvmdbg.addr import Gva
from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.octets import to_hex
from kvmdbg.rsp.threadid import ThreadSpec

STOP_REASON = b"?"
READ_REGISTERS = b"g"
FIRST_THREADS = b"qfThreadInfo"
NEXT_THREADS = b"qsThreadInfo"
STEP_BACK = b"bs"
CONTINUE_BACK = b"bc"
QUERY_STEP_BITS = b"qqemu.sstepbits"
QUERY_STEP_MODE = b"qqemu.sstep"


def supported(features: Iterable[str]) -> bytes:
    """``qSupported``; features as written, e.g. ``multiprocess+``."""
    return b"qSupported:" + ";".join(features).encode()


def select_thread(thread: ThreadSpec) -> bytes:
    """``Hg``: whose registers and memory the next requests mean."""
    return b"Hg" + _thread(thread)


def read_register(number: int) -> bytes:
    """``p``"""
    return b"p%x" % number


def write_register(number: int, value: bytes) -> bytes:
    """``P``; ``value`` in guest byte order."""
    return b"P%x=%b" % (number, to_hex(value))


def write_registers(data: bytes) -> bytes:
    """``G``; the values that ``g`` returns, joined."""
    return b"G" + to_hex(data)


def read_memory(address: int, length: int) -> bytes:
    """``m``; ``length`` in bytes."""
    return b"m%x,%x" % (address, length)


def write_memory(address: int, data: bytes) -> bytes:
    """``M``"""
    return b"M%x,%x:%b" % (address, len(data), to_hex(data))


def insert_breakpoint(kind: int, address: Gva, length: int) -> bytes:
    """``Z``; ``kind`` 0 to 4."""
    return b"Z%x,%x,%x" % (kind, address, length)


def remove_breakpoint(kind: int, address: Gva, length: int) -> bytes:
    """``z``"""
    return b"z%x,%x,%x" % (kind, address, length)


def vcont(actions: Iterable[tuple[str, ThreadSpec | None]]) -> bytes:
    """``vCont``; an action is a letter and the thread, None for all others."""
    return b"vCont" + b"".join(
        b";" + letter.encode() + (b":" + _thread(thread) if thread else b"")
        for letter, thread in actions
    )


def detach(pid: int = 1) -> bytes:
    """``D``"""
    return b"D;%x" % pid


def monitor(line: str) -> bytes:
    """``qRcmd``"""
    return b"qRcmd," + to_hex(line.encode())


def read_features(annex: str, offset: int, length: int) -> bytes:
    """``qXfer:features:read``"""
    return b"qXfer:features:read:%b:%x,%x" % (annex.encode(), offset, length)


def set_step_mode(bits: int) -> bytes:
    """``Qqemu.sstep``: 1 enables, 2 masks interrupts, 4 stops timers."""
    return b"Qqemu.sstep=%x" % bits


def set_physical_memory_mode(*, physical: bool) -> bytes:
    """``Qqemu.PhyMemMode``: ``m`` and ``M`` take guest physical addresses."""
    return b"Qqemu.PhyMemMode:%d" % physical


def _thread(thread: ThreadSpec) -> bytes:
    return thread.encode(multiprocess=thread.pid is not None)


def error_number(payload: bytes) -> int | None:
    """The number of an ``Enn`` reply (22 for ``E.text``); None if ``payload`` is no error.

    Hex data never looks like one: replies are in lower case.
    """
    if payload.startswith(b"E."):
        return 22
    if len(payload) == 3 and payload[:1] == b"E":
        return Fields(payload[1:]).number("error")
    return None


def parse_threads(payload: bytes) -> tuple[ThreadSpec, ...]:
    """The threads of a ``qfThreadInfo`` or ``qsThreadInfo`` reply; none ends the list."""
    fields = Fields(payload)
    if fields.skip(b"l"):
        fields.end()
        return ()
    fields.expect(b"m")
    threads = [ThreadSpec.parse(fields)]
    while fields.skip(b","):
        threads.append(ThreadSpec.parse(fields))
    fields.end()
    return tuple(threads)


def parse_object_part(payload: bytes) -> tuple[bytes, bool]:
    """The data of a ``qXfer`` reply, and whether it is the last."""
    if payload[:1] not in (b"l", b"m"):
        raise RemoteProtocolError(f"{payload[:20]!r} is no part of an object")
    return payload[1:], payload[:1] == b"l"
