"""The engine over QEMU's own gdbstub, on a private unix socket.

It works under any accelerator and needs nothing but a QEMU. What the stub does oddly ends here;
see :mod:`.execution` for most of it.
"""

from __future__ import annotations

from kvmdbg.backend.stub.engine import StubEngine

__all__ = ["StubEngine"]
