"""The GDB Remote Serial Protocol without I/O: bytes in, typed events out, and back.

:mod:`.frame` cuts a byte stream into packets for either role. :mod:`.server` is the stub's side,
:mod:`.client` the side that talks to somebody else's stub. Nothing here waits or owns a socket.

Source: GDB manual, appendix "GDB Remote Serial Protocol".
"""
