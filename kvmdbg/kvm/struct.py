"""The kernel's structs as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from kvmdbg import cstruct
from kvmdbg.kvm._abi import ffi


@dataclass(frozen=True)
class Struct(cstruct.Struct):
    """Base of those that kvm.cdef.h declares."""

    FFI: ClassVar[Any] = ffi
