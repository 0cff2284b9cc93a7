"""C functions behind cffi, declared and described in cdefs/native.cdef.h."""

from typing import Any, Protocol

from cffi import FFI

class _Library(Protocol):
    # A pointer argument takes bytes (to read from) or ffi.from_buffer() of what has a buffer.
    def rsp_checksum(self, data: Any, length: int) -> int: ...
    def hex_encode(self, data: Any, length: int, digits: Any) -> None: ...
    def hex_decode(self, digits: Any, length: int, data: Any) -> int: ...
    def read_process_memory(self, pid: int, address: int, buffer: Any, length: int) -> int: ...

ffi: FFI
lib: _Library
