"""The control protocol between a VM's owner and its clients: types and codec, no I/O.

Newline-delimited JSON over a private unix stream socket. A client sends :class:`Call`; the owner
sends :class:`Answer` (in any order, matched by ``id``) and :class:`Push`. The requests mirror the
calls of :mod:`kvmdbg.target.capabilities` one to one; the first must be :class:`Hello`. Bytes
travel as base64, as msgspec writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar

import msgspec

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.errors import KvmdbgError, RemoteProtocolError, from_code
from kvmdbg.target.breakpoints import BreakpointSpec, ClientId
from kvmdbg.target.events import VmEvent
from kvmdbg.target.stops import ResumePlan, Stop

VERSION = 2
"""Raised with every incompatible change; owner and client must agree."""

LINE_LIMIT = 64 * 1024 * 1024
"""Longest message, bytes: bulk memory reads are split by the client well below it."""


class Role(Enum):
    """What a client is to the VM's lifetime."""

    USER = "user"
    """The VM lives while it is there, and may end when it leaves in good order."""

    BRIDGE = "bridge"
    """Keeps the VM while it is there; its leaving means nothing (the gdb behind it counts)."""


class ClientInfo(msgspec.Struct, frozen=True):
    """One client of the VM, as ``ls`` and ``monitor clients`` show it."""

    id: ClientId
    pid: int = 0


class VmStatus(msgspec.Struct, frozen=True):
    """What the owner knows of its VM."""

    name: str
    pid: int
    arch: str
    accel: str
    engine: str
    booted: bool
    run_state: str
    stop: Stop | None
    vcpus: int
    keep: bool
    gdb_socket: str
    console_socket: str | None
    console_log: str | None
    vmlinux: str | None
    clients: tuple[ClientInfo, ...]
    listening: tuple[str, ...]
    notices: tuple[str, ...] = ()
    """What had to be said while the VM was opened: why this accelerator, what differs."""
    recorded: bool = False


class Request(msgspec.Struct, frozen=True, tag=True):
    """Base of all requests; the tag is the class's name."""

    answer: ClassVar[object] = None


class Hello(Request, frozen=True):
    """The first request; the answer is the client's id."""

    version: int
    role: Role
    kind: str
    answer: ClassVar[object] = ClientId


class Bye(Request, frozen=True):
    """The client leaves in good order."""


class Follow(Request, frozen=True):
    """From now on, push when the VM runs on and when it stops, too: thousands of times a second
    while a gdb steps, so that only those get it who want it."""


class Status(Request, frozen=True):
    """What the owner knows of its VM."""

    answer: ClassVar[object] = VmStatus


class Pause(Request, frozen=True):
    """``Vm.pause``."""

    answer: ClassVar[object] = Stop


class Resume(Request, frozen=True):
    """``Vm.resume``."""

    plan: ResumePlan = ResumePlan()


class Reset(Request, frozen=True):
    """``Vm.reset``."""


class Quit(Request, frozen=True):
    """End the VM, or leave it where it was attached to."""


class Keep(Request, frozen=True):
    """The VM shall outlive its clients."""


class Listen(Request, frozen=True):
    """Serve RSP on one more address; the answer is the address as it came out."""

    address: str
    answer: ClassVar[object] = str


class Monitor(Request, frozen=True):
    """Run a human monitor command."""

    command: str
    answer: ClassVar[object] = str


class ReadBlock(Request, frozen=True):
    """``Registers.read_block``."""

    vcpu: VcpuIndex
    answer: ClassVar[object] = list[bytes | None]


class ReadRegister(Request, frozen=True):
    """``Registers.read_register``."""

    vcpu: VcpuIndex
    number: int
    answer: ClassVar[object] = bytes | None


class WriteRegisters(Request, frozen=True):
    """``Registers.write_registers``."""

    vcpu: VcpuIndex
    values: Mapping[int, bytes]


class ReadMemory(Request, frozen=True):
    """``Memory.read``."""

    vcpu: VcpuIndex
    address: Gva
    length: int
    answer: ClassVar[object] = bytes


class WriteMemory(Request, frozen=True):
    """``Memory.write``."""

    vcpu: VcpuIndex
    address: Gva
    data: bytes


class ReadPhysical(Request, frozen=True):
    """``PhysicalMemory.read``."""

    address: Gpa
    length: int
    answer: ClassVar[object] = bytes


class WritePhysical(Request, frozen=True):
    """``PhysicalMemory.write``."""

    address: Gpa
    data: bytes


class InsertBreakpoint(Request, frozen=True):
    """``BreakpointStore.insert``, for this client."""

    spec: BreakpointSpec


class RemoveBreakpoint(Request, frozen=True):
    """``BreakpointStore.remove``, for this client."""

    spec: BreakpointSpec


AnyRequest = (
    Hello
    | Bye
    | Follow
    | Status
    | Pause
    | Resume
    | Reset
    | Quit
    | Keep
    | Listen
    | Monitor
    | ReadBlock
    | ReadRegister
    | WriteRegisters
    | ReadMemory
    | WriteMemory
    | ReadPhysical
    | WritePhysical
    | InsertBreakpoint
    | RemoveBreakpoint
)


class Call(msgspec.Struct, frozen=True):
    """Client to owner."""

    id: int
    request: AnyRequest


class Failure(msgspec.Struct, frozen=True):
    """An exception of :mod:`kvmdbg.errors`, by name, and its sentence."""

    code: str
    text: str

    @classmethod
    def of(cls, error: KvmdbgError) -> Failure:
        """The failure that carries ``error``."""
        return cls(error.code, str(error))

    def exception(self) -> KvmdbgError:
        """The exception again."""
        return from_code(self.code, self.text)


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """Owner to client: the result of the call ``id``, or its failure."""

    id: int
    result: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None


class Push(msgspec.Struct, frozen=True, tag="push"):
    """Owner to client, unasked."""

    event: VmEvent


class _Numbered(msgspec.Struct):
    """What of a call can be read where its request cannot."""

    id: int


_encoder = msgspec.json.Encoder()
_numbered_decoder = msgspec.json.Decoder(_Numbered)
_call_decoder = msgspec.json.Decoder(Call)
_message_decoder: msgspec.json.Decoder[Answer | Push] = msgspec.json.Decoder(Answer | Push)


def encode(message: Call | Answer | Push) -> bytes:
    """One message as a line."""
    return _encoder.encode(message) + b"\n"


def encode_result(result: object) -> msgspec.Raw:
    """The result of a request, ready for :class:`Answer`."""
    return msgspec.Raw(_encoder.encode(result))


def decode_call(line: bytes) -> Call | Answer:
    """What a client sent, or the refusal of a request that is wrong. Raises RemoteProtocolError."""
    try:
        return _call_decoder.decode(line)
    except msgspec.MsgspecError as error:
        wrong = RemoteProtocolError(f"a control client sent a request that is wrong: {error}")
        try:
            return Answer(_numbered_decoder.decode(line).id, failure=Failure.of(wrong))
        except msgspec.MsgspecError:
            raise wrong from error


def decode_message(line: bytes) -> Answer | Push:
    """What the owner sent. Raises RemoteProtocolError."""
    try:
        return _message_decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(f"the owner sent a wrong message: {error}") from error
