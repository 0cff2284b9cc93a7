"""The KVM API behind cffi, declared in cdefs/kvm.cdef.h and cdefs/kvm.<architecture>.cdef.h."""

from typing import Any

from cffi import FFI

class _Library:
    def read_exit(self, run: Any, facts: Any) -> None: ...
    # The constants: which there are depends on the architecture.
    def __getattr__(self, name: str) -> int: ...

ffi: FFI
lib: _Library
