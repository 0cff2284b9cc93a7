"""The structs and constants of the agent's protocol, declared in cdefs/agent.cdef.h."""

from cffi import FFI

class _Library:
    def __getattr__(self, name: str) -> int: ...

ffi: FFI
lib: _Library
