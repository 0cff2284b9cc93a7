"""What the agent's errors mean, in words."""

from __future__ import annotations

import errno
import os

from kvmdbg.errors import AgentRefused
from kvmdbg.wire.structs import Type

_TASKS = {
    Type.HELLO: "to be debugged",
    Type.ADOPT: "to take over the VM that it was loaded into",
    Type.VCPUS: "to list the vCPUs",
    Type.SLOTS: "to list the guest's memory",
    Type.IOCTL: "to ask KVM",
    Type.READ: "to read the guest's memory",
    Type.WRITE: "to write the guest's memory",
    Type.TRANSLATE: "to translate an address",
    Type.INSERT: "to set a breakpoint",
    Type.REMOVE: "to remove a breakpoint",
    Type.POINTS: "to list the breakpoints",
    Type.HOLD: "to hold the vCPUs",
    Type.RESUME: "to let the vCPUs run",
    Type.STOPS: "to say who stopped",
    Type.RUN_PAGE: "to show a vCPU's last exit",
    Type.CONFIGURE: "to be configured",
    Type.STATISTICS: "to tell its statistics",
    Type.CLOCK: "to tell of the guest's clock",
    Type.DETACH: "to let go of the VM",
}

_REASONS = {
    (Type.HELLO, errno.EPROTO): "it is of another version than this kvmdbg: end the VM and "
    "start it again",
    (Type.ADOPT, errno.ENOENT): "its program does not call KVM as QEMU does",
    (Type.WRITE, errno.EFAULT): "not all of it is mapped to RAM",
    (Type.WRITE, errno.EBUSY): "QEMU logs writes to that memory, as for a migration, and would "
    "lose this one: wait until the migration has ended, and the VM has run on",
    (Type.READ, errno.EFAULT): "it is not mapped to RAM",
    (Type.TRANSLATE, errno.EFAULT): "it is not mapped",
    (Type.INSERT, errno.EEXIST): "there is one of that kind at that address",
    (Type.INSERT, errno.EFAULT): "the address is not mapped to RAM",
    (Type.INSERT, errno.ENOSPC): "every debug register is taken",
    (Type.INSERT, errno.EINVAL): "debug registers do not have that alignment or length",
    (Type.INSERT, errno.ENOMEM): "there are too many",
    (Type.REMOVE, errno.ENOENT): "there is none with that number",
}
_ANY_REASON = {
    errno.EINVAL: "there is no such vCPU, or the request makes no sense",
    errno.ENOTSUP: "this host's KVM, or its kind of processor, cannot do that",
    errno.ENOSYS: "it does not know such a request",
    errno.ETIMEDOUT: "QEMU is busy with what a vCPU wrote to, or read from, a device: try again",
    errno.EPROTO: "kvmdbg did not keep to the protocol",
}


def refusal(type: Type, code: int) -> AgentRefused:
    """The error for a request that the agent answered with errno ``code``."""
    symbol = errno.errorcode.get(code, str(code))
    reason = _REASONS.get((type, code)) or _ANY_REASON.get(code) or os.strerror(code)
    return AgentRefused(
        f"the agent in QEMU refuses {_TASKS[type]}: {reason} ({symbol})",
        request=type.name,
        errno=code,
    )
