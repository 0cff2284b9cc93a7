"""Every exception that kvmdbg raises on purpose.

The text of each is one sentence that says what failed, why, and what to do. The command line
prints it and exits with :attr:`KvmdbgError.exit_status`; the RSP server turns it into an error
reply; the control protocol carries :attr:`KvmdbgError.code` and the text, and the client raises
the same class again (:func:`from_code`).
"""

from __future__ import annotations


class KvmdbgError(Exception):
    """Base of all: anything else that escapes is a bug."""

    exit_status = 1

    @property
    def code(self) -> str:
        """Stable name of the class, as the control protocol carries it."""
        return type(self).__name__


class UsageError(KvmdbgError):
    """The command line or an API argument makes no sense."""

    exit_status = 2


# --- finding, defining and starting a VM ---------------------------------------------------------


class DefinitionError(KvmdbgError):
    """A VM definition is wrong; the text names file, line and key."""


class VmNotFound(KvmdbgError):
    """No VM and no definition has that name; the text lists the candidates."""


class VmAmbiguous(KvmdbgError):
    """Several VMs answer to that name; the text lists them."""


class NotRunning(KvmdbgError):
    """The command needs a running VM and would have to boot one."""


class ImageError(KvmdbgError):
    """A VM image could not be built, verified or found."""


class LaunchError(KvmdbgError):
    """QEMU is missing, too old, or died at start; the text carries QEMU's own words."""


class AttachError(KvmdbgError):
    """A running QEMU could not be attached to."""


class AcceleratorError(KvmdbgError):
    """The accelerator or engine that was asked for cannot be used."""


class KvmError(KvmdbgError):
    """Base of what KVM on this host refuses."""


class KvmUnavailable(KvmError):
    """/dev/kvm is missing, closed to us, or no KVM."""


class KvmUnsupported(KvmError):
    """This host's KVM lacks a capability."""


class IoctlError(KvmError):
    """An ioctl of KVM failed; the text names it, its vCPU and errno."""

    def __init__(
        self, text: str, *, ioctl: str = "", vcpu: int | None = None, errno: int = 0
    ) -> None:
        super().__init__(text)
        self.ioctl = ioctl
        self.vcpu = vcpu
        """None for an ioctl of /dev/kvm or of a VM."""
        self.errno = errno


class RuntimeDirError(KvmdbgError):
    """The private runtime folder cannot be made or is not private."""


# --- the live target -----------------------------------------------------------------------------


class TargetError(KvmdbgError):
    """Base of what an operation on a live VM can raise."""


class VmGone(TargetError):
    """The VM, or the QEMU that ran it, has ended."""


class VmRunning(TargetError):
    """The operation needs the VM stopped."""


class VmStopped(TargetError):
    """The operation needs the VM running."""


class NotResumable(TargetError):
    """The VM is in a state (shut down, panicked, internal error) that cannot be resumed."""


class MemoryFault(TargetError):
    """No byte at the address could be read or written."""


class RegisterError(TargetError):
    """No such register, or it cannot be read or written on this engine."""


class BreakpointError(TargetError):
    """A breakpoint or watchpoint was refused."""


class ExpressionError(TargetError):
    """An expression cannot be read, or has no value where it was evaluated."""


class NoSuchVcpu(TargetError):
    """There is no vCPU with that index."""


class Unsupported(TargetError):
    """This engine or accelerator cannot do that."""


class WaitTimeout(TargetError):
    """What was waited for did not happen in time."""


class Busy(TargetError):
    """Somebody else drives the VM just now."""


class AgentError(TargetError):
    """The agent inside QEMU cannot be used, or did not do what it was asked for."""


class AgentRefused(AgentError):
    """The agent answered a request with an error."""

    def __init__(self, text: str, *, request: str = "", errno: int = 0) -> None:
        super().__init__(text)
        self.request = request
        self.errno = errno


class AgentTimeout(AgentError):
    """The agent did not answer in time; it may still do."""


class AgentLost(AgentError):
    """The agent hung up though its QEMU lives on: the guest is unpatched, and runs."""


class UnexpectedStop(TargetError):
    """The VM stopped for another reason than the one that was waited for."""


class SymbolError(KvmdbgError, KeyError):
    """A symbol or a symbol file is not there."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


# --- peers and protocols -------------------------------------------------------------------------


class ProtocolError(KvmdbgError):
    """Base of protocol failures, RSP and control alike."""


class LocalProtocolError(ProtocolError):
    """We broke the protocol: a bug on our side."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol."""


class MonitorError(KvmdbgError):
    """QEMU's monitor refused a command or did not answer."""


class OwnerError(KvmdbgError):
    """The VM's owner process could not be started or reached."""


class ListenError(KvmdbgError):
    """An address cannot be listened on, or is not allowed."""


class PeerRefused(KvmdbgError):
    """Somebody who may not connect tried to."""


def _subclasses(cls: type[KvmdbgError]) -> dict[str, type[KvmdbgError]]:
    found = {cls.__name__: cls}
    for sub in cls.__subclasses__():
        found.update(_subclasses(sub))
    return found


def from_code(code: str, text: str) -> KvmdbgError:
    """The exception that :attr:`KvmdbgError.code` names; the base class for an unknown code."""
    return _subclasses(KvmdbgError).get(code, KvmdbgError)(text)
