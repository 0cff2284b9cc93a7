"""What each message carries, either way: both ends encode and decode with the same values."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.wire.structs import (
    Action,
    AdoptHead,
    Clock,
    Configuration,
    Doorbell,
    Hello,
    IoctlHead,
    Point,
    PointRequest,
    Range,
    Result,
    Slot,
    Statistics,
    Stop,
    Struct,
    Translation,
    Type,
    Vcpu,
    Welcome,
)

T = TypeVar("T")
S = TypeVar("S", bound=Struct)
Q = TypeVar("Q")
A = TypeVar("A")


class Payload(Protocol[T]):
    """What a payload is made of. ``decode`` raises ValueError for bytes that are none of it."""

    def encode(self, value: T, /) -> bytes: ...

    def decode(self, data: bytes, /) -> T: ...


class Nothing:
    """No bytes."""

    def encode(self, value: None) -> bytes:
        return b""

    def decode(self, data: bytes) -> None:
        _end(data)


class Octets:
    """Any bytes."""

    def encode(self, value: bytes) -> bytes:
        return bytes(value)

    def decode(self, data: bytes) -> bytes:
        return data


class Number:
    """A uint32_t."""

    _FORMAT = struct.Struct("=I")

    def encode(self, value: int) -> bytes:
        return self._FORMAT.pack(value)

    def decode(self, data: bytes) -> int:
        if len(data) != self._FORMAT.size:
            raise ValueError(f"a number takes {self._FORMAT.size} bytes, not {len(data)}")
        return int(self._FORMAT.unpack(data)[0])


@dataclass(frozen=True)
class One(Generic[S]):
    """A struct."""

    kind: type[S]

    def encode(self, value: S) -> bytes:
        return value.encode()

    def decode(self, data: bytes) -> S:
        value, rest = _split(self.kind, data)
        _end(rest)
        return value


@dataclass(frozen=True)
class Many(Generic[S]):
    """An array of structs."""

    kind: type[S]

    def encode(self, values: tuple[S, ...]) -> bytes:
        return b"".join(value.encode() for value in values)

    def decode(self, data: bytes) -> tuple[S, ...]:
        size = self.kind.sizeof()
        if len(data) % size:
            raise ValueError(f"{len(data)} bytes are no array of {self.kind.C_TYPE}")
        return tuple(self.kind.decode(data[at : at + size]) for at in range(0, len(data), size))


@dataclass(frozen=True)
class Headed(Generic[S]):
    """A struct, and bytes after it."""

    kind: type[S]

    def encode(self, value: tuple[S, bytes]) -> bytes:
        head, rest = value
        return head.encode() + rest

    def decode(self, data: bytes) -> tuple[S, bytes]:
        return _split(self.kind, data)


@dataclass(frozen=True)
class Adoption:
    """What a late attach found in QEMU: descriptors of QEMU's, sizes in bytes."""

    vm_fd: int
    run_size: int
    vcpus: tuple[Vcpu, ...]
    slots: tuple[Slot, ...]


class _Adoption:
    def encode(self, value: Adoption) -> bytes:
        head = AdoptHead(value.vm_fd, value.run_size, len(value.vcpus), len(value.slots))
        return head.encode() + Many(Vcpu).encode(value.vcpus) + Many(Slot).encode(value.slots)

    def decode(self, data: bytes) -> Adoption:
        head, rest = _split(AdoptHead, data)
        vcpus = Many(Vcpu).decode(rest[: head.vcpus * Vcpu.sizeof()])
        slots = Many(Slot).decode(rest[head.vcpus * Vcpu.sizeof() :])
        if (len(vcpus), len(slots)) != (head.vcpus, head.slots):
            raise ValueError("the counts of an adoption do not fit its length")
        return Adoption(head.vm_fd, head.run_size, vcpus, slots)


def _split(kind: type[S], data: bytes) -> tuple[S, bytes]:
    return kind.decode(data), data[kind.sizeof() :]


def _end(rest: bytes) -> None:
    if rest:
        raise ValueError(f"{len(rest)} bytes too many")


@dataclass(frozen=True)
class Message(Generic[Q, A]):
    """A request and its answer."""

    type: Type
    request: Payload[Q]
    answer: Payload[A]

    def decode_request(self, data: bytes) -> Q:
        """Raises RemoteProtocolError for a payload that is none."""
        return _decode(self.type, self.request, data)

    def decode_answer(self, data: bytes) -> A:
        """Raises RemoteProtocolError for a payload that is none."""
        return _decode(self.type, self.answer, data)


def _decode(type: Type, payload: Payload[T], data: bytes) -> T:
    try:
        return payload.decode(data)
    except ValueError as error:
        raise RemoteProtocolError(
            f"the {type.name} message makes no sense ({error}): "
            "kvmdbg and the agent in QEMU are not of one version"
        ) from error


NOTHING = Nothing()
OCTETS = Octets()

HELLO = Message(Type.HELLO, One(Hello), One(Welcome))
ADOPT = Message(Type.ADOPT, _Adoption(), NOTHING)
VCPUS = Message(Type.VCPUS, NOTHING, Many(Vcpu))
SLOTS = Message(Type.SLOTS, NOTHING, Many(Slot))
IOCTL = Message(Type.IOCTL, Headed(IoctlHead), Headed(Result))
READ = Message(Type.READ, One(Range), OCTETS)
WRITE = Message(Type.WRITE, Headed(Range), NOTHING)
TRANSLATE = Message(Type.TRANSLATE, One(Range), One(Translation))
INSERT = Message(Type.INSERT, One(PointRequest), One(Point))
REMOVE = Message(Type.REMOVE, Number(), NOTHING)
POINTS = Message(Type.POINTS, NOTHING, Many(Point))
HOLD = Message(Type.HOLD, NOTHING, NOTHING)
RESUME = Message(Type.RESUME, Many(Action), NOTHING)
STOPS = Message(Type.STOPS, NOTHING, Many(Stop))
RUN_PAGE = Message(Type.RUN_PAGE, Number(), OCTETS)
CONFIGURE = Message(Type.CONFIGURE, One(Configuration), NOTHING)
STATISTICS = Message(Type.STATISTICS, NOTHING, One(Statistics))
CLOCK = Message(Type.CLOCK, NOTHING, One(Clock))
DETACH = Message(Type.DETACH, NOTHING, NOTHING)
DOORBELL = Message(Type.DOORBELL, NOTHING, One(Doorbell))
"""The agent's own: an answer that nobody asked for."""

MESSAGES: Mapping[Type, Message[Any, Any]] = {
    message.type: message for message in list(globals().values()) if isinstance(message, Message)
}
