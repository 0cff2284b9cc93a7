"""The boundary at which an exception becomes an RSP error."""

from __future__ import annotations

import errno

from kvmdbg import errors
from kvmdbg.rsp.server.replies import Error

_NUMBERS: tuple[tuple[type[errors.KvmdbgError], int], ...] = (
    (errors.MemoryFault, errno.EFAULT),
    (errors.NoSuchVcpu, errno.ESRCH),
    (errors.VmGone, errno.ESRCH),
    (errors.RegisterError, errno.EINVAL),
    (errors.RemoteProtocolError, errno.EINVAL),
    (errors.BreakpointError, errno.ENOSPC),
    (errors.Busy, errno.EBUSY),
    (errors.VmRunning, errno.EBUSY),
    (errors.WaitTimeout, errno.ETIMEDOUT),
    (errors.Unsupported, errno.EOPNOTSUPP),
)

_EXPECTED = (errors.MemoryFault, errors.NoSuchVcpu, errors.RemoteProtocolError)


def error_reply(error: errors.KvmdbgError) -> Error:
    """The reply for ``error``; EIO for what has no number of its own."""
    for kind, number in _NUMBERS:
        if isinstance(error, kind):
            return Error(number, str(error))
    return Error(errno.EIO, str(error))


def is_worth_telling(error: errors.KvmdbgError) -> bool:
    """False for what gdb provokes all the time and explains by itself."""
    return not isinstance(error, _EXPECTED)
