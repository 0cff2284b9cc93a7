"""A QEMU that was not started with the agent: load it, tell it what there is, and talk to it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from kvmdbg._native import lib
from kvmdbg.agent.client import AgentClient
from kvmdbg.agent.connection import AgentConnection
from kvmdbg.agent.inject import inject
from kvmdbg.agent.process import Process
from kvmdbg.errors import AttachError
from kvmdbg.wire.messages import Adoption
from kvmdbg.wire.structs import Features, Slot, Vcpu

_VM = "anon_inode:kvm-vm"
_VCPU = re.compile(r"anon_inode:kvm-vcpu:(\d+)")


def library() -> Path:
    """agent.so, as it is installed."""
    with resources.as_file(resources.files("kvmdbg.agent") / "agent.so") as path:
        return path.resolve()


def vcpu_threads(cpus: Iterable[Mapping[str, Any]]) -> list[int]:
    """The vCPUs' threads in the order of KVM's numbers, from the answer to ``query-cpus-fast``.

    That lists vCPUs as they were plugged in; QEMU's index of one has the order of the APIC ids.
    """
    return [cpu["thread-id"] for cpu in sorted(cpus, key=lambda cpu: int(cpu["cpu-index"]))]


async def attach(pid: int, threads: Sequence[int], slots: Sequence[Slot]) -> AgentClient:
    """Load the agent into QEMU ``pid``; when its client closes, all is as before.

    ``threads`` are those of :func:`vcpu_threads`, and ``slots`` where guest memory is in QEMU's:
    the monitor knows both. Raises AttachError, AgentError and VmGone.
    """
    adoption = discover(pid, threads, slots)
    injection = await inject(pid, library())
    peer = socket.socket(fileno=take_descriptor(pid, injection.descriptor))
    client = AgentClient(await AgentConnection.over(peer, pid))
    if client.welcome.features & Features.ADOPTION:  # else it was preloaded, and has seen it all
        try:
            await client.adopt(adoption)
        except BaseException:
            client.close()
            raise
    return client


def discover(pid: int, threads: Sequence[int], slots: Sequence[Slot]) -> Adoption:
    """What KVM made for process ``pid``, by its open files. Raises AttachError."""
    process = Process(pid)
    vm: int | None = None
    vcpus: dict[int, int] = {}
    for descriptor, target in process.descriptors().items():
        if target == _VM and vm is None:
            vm = descriptor
        elif match := _VCPU.fullmatch(target):
            vcpus.setdefault(int(match[1]), descriptor)
    if vm is None or not vcpus:
        raise AttachError(f"process {pid} ({process.name}) has no KVM virtual machine")
    if len(vcpus) != len(threads):
        raise AttachError(
            f"process {pid} ({process.name}) has {len(vcpus)} vCPUs in KVM, "
            f"but its monitor names {len(threads)} threads: more than one virtual machine?"
        )
    # KVM's numbers of vCPUs are APIC ids on x86, with gaps at times.
    found = [
        Vcpu(index, descriptor, thread)
        for (index, descriptor), thread in zip(sorted(vcpus.items()), threads, strict=True)
    ]
    return Adoption(vm, _run_size(process), tuple(found), tuple(slots))


def _run_size(process: Process) -> int:
    """Bytes that KVM lets QEMU map of a vCPU; alike for all."""
    for mapping in process.mappings():
        if mapping.offset == 0 and _VCPU.fullmatch(mapping.path):
            return mapping.end - mapping.start
    raise AttachError(f"process {process.pid} ({process.name}) has mapped no vCPU")


def take_descriptor(pid: int, descriptor: int) -> int:
    """Our own copy of a descriptor of process ``pid``. Raises AttachError."""
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise AttachError(f"there is no process {pid} any more") from error
    try:
        copy = lib.copy_descriptor(process, descriptor)
    finally:
        os.close(process)
    if copy < 0:
        raise AttachError(
            f"the socket to the agent in process {pid} cannot be taken: {os.strerror(-copy)}"
        )
    return copy
