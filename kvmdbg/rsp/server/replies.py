"""Replies: typed answers, and the payloads that they become.

Stop replies are in :mod:`kvmdbg.rsp.stops`: both roles know them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kvmdbg.addr import Gva
from kvmdbg.rsp.octets import to_hex
from kvmdbg.rsp.server.commands.session import Supported
from kvmdbg.rsp.stops import Cause, Exited, Stopped, StopReply, Terminated, encode_stop
from kvmdbg.rsp.threadid import ThreadSpec


@dataclass(frozen=True, slots=True)
class Ok:
    """``OK``."""


@dataclass(frozen=True, slots=True)
class Empty:
    """The empty reply: not supported here."""


@dataclass(frozen=True, slots=True)
class Error:
    """``E``: ``number`` is an errno, 1 to 255; ``text`` is for clients that said they show it,
    and for all where the reply is ``shown`` as it stands."""

    number: int
    text: str = ""
    shown: bool = False


@dataclass(frozen=True, slots=True)
class SupportedFeatures:
    """``qSupported``: flags get a ``+``."""

    flags: frozenset[str]
    packet_size: int


@dataclass(frozen=True, slots=True)
class Undefined:
    """A register whose value cannot be known; ``size`` in bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class Registers:
    """``g`` and ``p``: values in guest byte order."""

    values: tuple[bytes | Undefined, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """``m``: what could be read, which may be less than was asked for."""

    data: bytes


@dataclass(frozen=True, slots=True)
class BinaryMemory:
    """``x``: what could be read, which may be less than was asked for."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """``qSearch:memory``: the address of the first match, None where there is none."""

    address: Gva | None


@dataclass(frozen=True, slots=True)
class Checksum:
    """``qCRC``."""

    value: int


@dataclass(frozen=True, slots=True)
class FileResult:
    """``vFile``: what the call returned, with the bytes that it read."""

    value: int
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class FileError:
    """``vFile``: the call failed; ``errno`` is one of GDB's File-I/O numbers."""

    errno: int


@dataclass(frozen=True, slots=True)
class CurrentThreadIs:
    """``qC``."""

    thread: ThreadSpec


@dataclass(frozen=True, slots=True)
class Threads:
    """A piece of the thread list; an empty one ends it."""

    threads: tuple[ThreadSpec, ...]


@dataclass(frozen=True, slots=True)
class ObjectPart:
    """``qXfer`` read: a piece of an object; ``last`` if nothing follows it."""

    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Flag:
    """``0`` or ``1``, for ``qAttached`` and the like."""

    on: bool


@dataclass(frozen=True, slots=True)
class VContActions:
    """``vCont?``: the letters of the actions."""

    letters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text as the whole reply, as it is, for QEMU's own queries."""

    text: str


@dataclass(frozen=True, slots=True)
class HexText:
    """A text as the whole reply, for ``qThreadExtraInfo`` and ``qRcmd``."""

    text: str


@dataclass(frozen=True, slots=True)
class Properties:
    """Names with values, for lldb's queries."""

    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ConsoleOutput:
    """``O``: a text for the user's console. Not a reply: the reply is still to come."""

    text: str


Reply = (
    Ok
    | Empty
    | Error
    | SupportedFeatures
    | Registers
    | Memory
    | BinaryMemory
    | Found
    | Checksum
    | FileResult
    | FileError
    | CurrentThreadIs
    | Threads
    | ObjectPart
    | Flag
    | VContActions
    | PlainText
    | HexText
    | Properties
    | StopReply
)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What both sides said they know in ``qSupported``."""

    multiprocess: bool = False
    error_message: bool = False
    error_strings: bool = False
    """lldb's form of them; agreed on by ``QEnableErrorStrings``."""
    causes: frozenset[Cause] = frozenset()

    @classmethod
    def between(cls, client: Supported, server: SupportedFeatures) -> Negotiated:
        """The features that both have."""

        def both(name: str) -> bool:
            return client.has(name) and name in server.flags

        return cls(
            multiprocess=both("multiprocess"),
            error_message=both("error-message"),
            causes=frozenset(cause for cause in Cause if both(cause.value.decode())),
        )


def encode(reply: Reply | ConsoleOutput, negotiated: Negotiated) -> bytes:
    """The payload of ``reply``."""
    multiprocess = negotiated.multiprocess
    match reply:
        case Ok():
            return b"OK"
        case Empty():
            return b""
        case Memory(data):
            return to_hex(data)
        case BinaryMemory(data):
            return b"b" + data
        case Registers(values):
            return _registers(values)
        case Stopped() | Exited() | Terminated():
            return encode_stop(reply, multiprocess=multiprocess, causes=negotiated.causes)
        case Error():
            return _error(reply, negotiated)
        case ObjectPart(data, last):
            return (b"l" if last else b"m") + data
        case Threads(threads):
            ids = [thread.encode(multiprocess=multiprocess) for thread in threads]
            return b"m" + b",".join(ids) if ids else b"l"
        case CurrentThreadIs(thread):
            return b"QC" + thread.encode(multiprocess=multiprocess)
        case SupportedFeatures(flags, packet_size):
            return b";".join(
                [b"PacketSize=%x" % packet_size, *(f"{flag}+".encode() for flag in sorted(flags))]
            )
        case VContActions(letters):
            return ";".join(("vCont", *letters)).encode()
        case Flag(on):
            return b"%d" % on
        case PlainText(text):
            return text.encode()
        case HexText(text):
            return to_hex(text.encode())
        case Properties(values):
            return "".join(f"{name}:{value};" for name, value in values.items()).encode()
        case Found(address):
            return b"0" if address is None else b"1,%x" % address
        case Checksum(value):
            return b"C%08x" % value
        case FileResult() | FileError():
            return _file(reply)
        case ConsoleOutput(text):
            return b"O" + to_hex(text.encode())


def _error(error: Error, negotiated: Negotiated) -> bytes:
    if error.text and (error.shown or negotiated.error_message):
        return b"E." + _plain(error.text)
    number = b"E%02x" % error.number
    if error.text and negotiated.error_strings:
        return number + b";" + to_hex(error.text.encode())
    return number


def _file(reply: FileResult | FileError) -> bytes:
    match reply:
        case FileError(errno):
            return b"F-1,%x" % errno
        case FileResult(value, None):
            return b"F%x" % value
        case FileResult(value, data):
            return b"F%x;" % value + (data or b"")


def _registers(values: Iterable[bytes | Undefined]) -> bytes:
    pieces = []
    known = bytearray()  # in hex all at once: one by one costs more than everything else in g
    for value in values:
        if isinstance(value, Undefined):
            pieces += [to_hex(known), b"xx" * value.size]
            known.clear()
        else:
            known += value
    return b"".join(pieces) + to_hex(known)


# gdb does not unescape error texts, so they must need no escapes.
_PLAIN = str.maketrans("#$}*\n", "%S)x ")


def _plain(text: str) -> bytes:
    return text.translate(_PLAIN).encode()
