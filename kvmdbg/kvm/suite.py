"""What an architecture brings to be probed with: cases, guests, capabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvmdbg.kvm.exits import Exit, InternalError, Interrupted
from kvmdbg.kvm.local import LocalKvm, LocalVm
from kvmdbg.kvm.transport import Transport

PASS = "pass"
DONE = "ran to its end"
NO_RETURN = "did not come back"

Results = dict[str, str | int | float]
"""Case or fact → outcome or value."""


class Case(Protocol):
    """What a KVM must do with one small guest."""

    @property
    def name(self) -> str: ...

    @property
    def leaves_traces(self) -> bool:
        """Whether the VM must not serve another case before or after."""

    def run(self, vm: Transport) -> str:
        """PASS, or what happened instead. Raises IoctlError and KvmUnsupported."""


@dataclass(frozen=True)
class Suite:
    """An architecture's cases and guests."""

    cases: Sequence[Case]
    create_vm: Callable[[LocalKvm], LocalVm]
    """A VM with one vCPU, and memory where the guests want it."""
    capabilities: Sequence[str]
    load_loop: Mapping[str, Callable[[Transport, int], None]]
    """Privilege ("kernel", "user") → load a loop of so many turns, two instructions each."""
    measure: Callable[[LocalVm], Results]
    """Facts for which a guest has to run."""


def describe(exit: Exit) -> str:
    """An exit that no architecture has to explain, in words that are the same each time."""
    match exit:
        case InternalError(suberror=suberror):
            return f"KVM internal error {suberror}"
        case Interrupted():
            return NO_RETURN
        case _:
            return str(exit)
