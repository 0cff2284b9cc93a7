"""The protocol of the agent inside QEMU, sans-IO: cdefs/agent.cdef.h says what it means.

:mod:`~kvmdbg.wire.structs` has its structs and constants, :mod:`~kvmdbg.wire.messages` what each
message carries either way, :mod:`~kvmdbg.wire.stream` how they follow each other on a socket.
"""
