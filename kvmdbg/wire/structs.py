"""The protocol's structs as frozen dataclasses, its constants as enums.

Field names are the declaration's; it says what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, ClassVar

from kvmdbg import cstruct
from kvmdbg.wire._layout import ffi, lib

MAGIC = lib.AGENT_MAGIC
VERSION = lib.AGENT_VERSION
MAX_PAYLOAD = lib.AGENT_MAX_PAYLOAD
"""Bytes after a header."""

OWN_ROOT = 2**64 - 1
"""As a page table's address: the vCPU's own."""
NO_REGISTER = 2**32 - 1
"""As a debug register's number: none, the point is in memory."""


class Type(IntEnum):
    """enum agent_type"""

    HELLO = lib.AGENT_HELLO
    ADOPT = lib.AGENT_ADOPT
    VCPUS = lib.AGENT_VCPUS
    SLOTS = lib.AGENT_SLOTS
    IOCTL = lib.AGENT_IOCTL
    READ = lib.AGENT_READ
    WRITE = lib.AGENT_WRITE
    TRANSLATE = lib.AGENT_TRANSLATE
    INSERT = lib.AGENT_INSERT
    REMOVE = lib.AGENT_REMOVE
    POINTS = lib.AGENT_POINTS
    HOLD = lib.AGENT_HOLD
    RESUME = lib.AGENT_RESUME
    STOPS = lib.AGENT_STOPS
    RUN_PAGE = lib.AGENT_RUN_PAGE
    CONFIGURE = lib.AGENT_CONFIGURE
    STATISTICS = lib.AGENT_STATISTICS
    CLOCK = lib.AGENT_CLOCK
    DETACH = lib.AGENT_DETACH
    DOORBELL = lib.AGENT_DOORBELL


class Features(IntFlag):
    """enum agent_features"""

    BLOCKIRQ = lib.AGENT_BLOCKIRQ
    ADOPTION = lib.AGENT_ADOPTION


class Scope(IntEnum):
    """enum agent_scope"""

    VM = lib.AGENT_VM
    VCPU = lib.AGENT_VCPU


class Space(IntEnum):
    """enum agent_space"""

    GVA = lib.AGENT_GVA
    GPA = lib.AGENT_GPA


class Access(IntFlag):
    """enum agent_access"""

    WRITABLE = lib.AGENT_WRITABLE
    USER = lib.AGENT_USER
    NX = lib.AGENT_NX
    DIRTY = lib.AGENT_DIRTY


class Kind(IntEnum):
    """enum agent_kind"""

    SOFTWARE = lib.AGENT_SOFTWARE
    HARDWARE = lib.AGENT_HARDWARE
    WATCH_WRITE = lib.AGENT_WATCH_WRITE
    WATCH_READ = lib.AGENT_WATCH_READ
    WATCH_ACCESS = lib.AGENT_WATCH_ACCESS


class PointState(IntEnum):
    """enum agent_point_state"""

    ARMED = lib.AGENT_ARMED
    OVERWRITTEN = lib.AGENT_OVERWRITTEN
    WITHDRAWN = lib.AGENT_WITHDRAWN
    YIELDED = lib.AGENT_YIELDED


class PointFlags(IntFlag):
    """enum agent_point_flags"""

    SILENT = lib.AGENT_SILENT
    GUARD = lib.AGENT_GUARD


NO_POINT_FLAGS = PointFlags(0)


class ActionKind(IntEnum):
    """enum agent_action_kind"""

    CONTINUE = lib.AGENT_CONTINUE
    STEP = lib.AGENT_STEP
    KEEP = lib.AGENT_KEEP


class ActionFlags(IntFlag):
    """enum agent_action_flags"""

    STEP_OVER = lib.AGENT_STEP_OVER
    LET_IRQ = lib.AGENT_LET_IRQ


NO_FLAGS = ActionFlags(0)


class StopKind(IntEnum):
    """enum agent_stop_kind"""

    RUNNING = lib.AGENT_RUNNING
    STEPPED = lib.AGENT_STEPPED
    HIT = lib.AGENT_HIT
    WATCHED = lib.AGENT_WATCHED
    RAW = lib.AGENT_RAW


class Flags(IntFlag):
    """enum agent_flags"""

    RAW_EXITS = lib.AGENT_RAW_EXITS
    HONOURS_RF = lib.AGENT_HONOURS_RF
    NO_SKIP = lib.AGENT_NO_SKIP
    STILL_CLOCK = lib.AGENT_STILL_CLOCK


class ClockState(IntEnum):
    """enum agent_clock_state"""

    UNSEEN = lib.AGENT_UNSEEN
    STILL = lib.AGENT_STILL
    DEAF = lib.AGENT_DEAF


@dataclass(frozen=True)
class Struct(cstruct.Struct):
    """Base of those that agent.cdef.h declares."""

    FFI: ClassVar[Any] = ffi


@dataclass(frozen=True)
class Header(Struct):
    C_TYPE: ClassVar[str] = "struct agent_header"

    length: int
    type: int
    zero: int
    id: int
    status: int


@dataclass(frozen=True)
class Hello(Struct):
    C_TYPE: ClassVar[str] = "struct agent_hello"

    magic: int = MAGIC
    version: int = VERSION


@dataclass(frozen=True)
class Welcome(Struct):
    C_TYPE: ClassVar[str] = "struct agent_welcome"

    magic: int
    version: int
    pid: int
    machine: int
    vcpus: int
    slots: int
    run_size: int
    features: Features
    debug_registers: int
    sessions: int


@dataclass(frozen=True)
class Vcpu(Struct):
    C_TYPE: ClassVar[str] = "struct agent_vcpu"

    index: int
    fd: int
    tid: int = 0
    in_run: int = 0


class SlotNumber(IntEnum):
    """enum agent_slot_number"""

    UNNUMBERED = lib.AGENT_UNNUMBERED


@dataclass(frozen=True)
class Slot(Struct):
    C_TYPE: ClassVar[str] = "struct agent_slot"

    slot: int
    flags: int
    gpa: int
    size: int
    hva: int


@dataclass(frozen=True)
class AdoptHead(Struct):
    C_TYPE: ClassVar[str] = "struct agent_adopt"

    vm_fd: int
    run_size: int
    vcpus: int
    slots: int


@dataclass(frozen=True)
class IoctlHead(Struct):
    C_TYPE: ClassVar[str] = "struct agent_ioctl"

    scope: Scope
    vcpu: int
    request: int
    argument: int
    size: int
    pointee: int


@dataclass(frozen=True)
class Result(Struct):
    C_TYPE: ClassVar[str] = "struct agent_result"

    result: int


@dataclass(frozen=True)
class Range(Struct):
    C_TYPE: ClassVar[str] = "struct agent_range"

    space: Space
    vcpu: int
    address: int
    length: int
    root: int = OWN_ROOT


@dataclass(frozen=True)
class Translation(Struct):
    C_TYPE: ClassVar[str] = "struct agent_translation"

    gpa: int
    page: int
    access: Access


@dataclass(frozen=True)
class PointRequest(Struct):
    C_TYPE: ClassVar[str] = "struct agent_point_request"

    kind: Kind
    vcpu: int
    address: int
    length: int
    root: int = OWN_ROOT
    flags: PointFlags = NO_POINT_FLAGS


@dataclass(frozen=True)
class Point(Struct):
    C_TYPE: ClassVar[str] = "struct agent_point"

    id: int
    kind: Kind
    address: int
    length: int
    gpa: int
    hits: int
    state: PointState
    debug_register: int
    flags: PointFlags
    original: bytes


@dataclass(frozen=True)
class Action(Struct):
    C_TYPE: ClassVar[str] = "struct agent_action"

    vcpu: int
    kind: ActionKind = ActionKind.CONTINUE
    flags: ActionFlags = NO_FLAGS


@dataclass(frozen=True)
class Stop(Struct):
    C_TYPE: ClassVar[str] = "struct agent_stop"

    vcpu: int
    kind: StopKind
    point: int = 0
    exception: int = 0
    sequence: int = 0
    pc: int = 0
    dr6: int = 0
    dr7: int = 0


@dataclass(frozen=True)
class Configuration(Struct):
    C_TYPE: ClassVar[str] = "struct agent_configuration"

    flags: Flags


@dataclass(frozen=True)
class Statistics(Struct):
    C_TYPE: ClassVar[str] = "struct agent_statistics"

    entries: int
    hits: int
    emulated: int
    lifted: int
    resumed: int
    foreign: int
    vanished: int
    exclusive: int


@dataclass(frozen=True)
class Clock(Struct):
    C_TYPE: ClassVar[str] = "struct agent_clock"

    held: int
    shift: int
    state: ClockState
    zero: int = 0


@dataclass(frozen=True)
class Doorbell(Struct):
    C_TYPE: ClassVar[str] = "struct agent_doorbell"

    sequence: int
