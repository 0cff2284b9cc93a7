"""Kinds of address and of index, so that the type checker keeps them apart.

All are plain ``int`` at run time. Addresses are in bytes.
"""

from __future__ import annotations

from typing import NewType

Gva = NewType("Gva", int)
"""Guest virtual (linear) address."""

Gpa = NewType("Gpa", int)
"""Guest physical address."""

Hva = NewType("Hva", int)
"""Virtual address in the QEMU process."""

VcpuIndex = NewType("VcpuIndex", int)
"""0-based number of a virtual CPU, as in QMP's ``query-cpus-fast``."""

ThreadId = NewType("ThreadId", int)
"""Thread number in RSP: the vCPU's index + 1 (0 means "any", -1 "all")."""


def thread_of(vcpu: VcpuIndex) -> ThreadId:
    """The RSP thread that stands for ``vcpu``."""
    return ThreadId(vcpu + 1)


def vcpu_of(thread: ThreadId) -> VcpuIndex:
    """The vCPU for which an RSP thread (1-based, never 0 or -1) stands."""
    return VcpuIndex(thread - 1)
