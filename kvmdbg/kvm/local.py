"""The transport for a VM of our own process. The one module of this package that does I/O."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from types import TracebackType
from typing import Self, TypeVar

from kvmdbg.errors import KvmUnavailable, MemoryFault
from kvmdbg.kvm._abi import ffi
from kvmdbg.kvm.exits import Exit, Interrupted, decode_exit
from kvmdbg.kvm.ioctl import Ioctl, Scope, command
from kvmdbg.kvm.system import (
    MemoryRegion,
    create_vcpu,
    create_vm,
    get_vcpu_mmap_size,
    set_user_memory_region,
)

T = TypeVar("T")

KVM_DEVICE = "/dev/kvm"

_IMMEDIATE_EXIT = ffi.offsetof("struct kvm_run", "immediate_exit")
_RUN = command("KVM_RUN", Scope.VCPU)


class LocalKvm:
    """An open /dev/kvm; a context manager."""

    def __init__(self, path: str = KVM_DEVICE) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmUnavailable(f"cannot open {path}: {error.strerror}") from error

    def call(self, ioctl: Ioctl[T]) -> T:
        """Execute an ioctl of /dev/kvm itself. Raises IoctlError."""
        return execute(self._fd, ioctl)

    def create_vm(self, memory: int) -> LocalVm:
        """A VM with ``memory`` bytes (whole pages) at GPA 0 and no vCPU. Raises IoctlError."""
        return LocalVm(self, self._fd, memory)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LocalVm:
    """A VM in this process: a :class:`kvmdbg.kvm.transport.Transport`, and a context manager.

    vCPUs run in the thread that calls :meth:`run`, until they exit or a signal comes for it.
    """

    def __init__(self, kvm: LocalKvm, system: int, memory: int) -> None:
        self._system = system
        self._run_size = kvm.call(get_vcpu_mmap_size())
        self._memory = mmap.mmap(-1, memory)
        self._vcpus: list[tuple[int, mmap.mmap]] = []
        self._fd = kvm.call(create_vm())
        region = MemoryRegion(0, 0, 0, memory, _address(self._memory))
        self.call(set_user_memory_region(region))

    def add_vcpu(self) -> int:
        """One more vCPU; its index. Raises IoctlError."""
        index = len(self._vcpus)
        fd = self.call(create_vcpu(index))
        self._vcpus.append((fd, mmap.mmap(fd, self._run_size)))
        return index

    def call(self, ioctl: Ioctl[T], vcpu: int = 0) -> T:
        match ioctl.scope:
            case Scope.SYSTEM:
                return execute(self._system, ioctl)
            case Scope.VM:
                return execute(self._fd, ioctl)
            case Scope.VCPU:
                return execute(self._vcpus[vcpu][0], ioctl, vcpu)

    def run(self, vcpu: int = 0) -> Exit:
        fd, run = self._vcpus[vcpu]
        try:
            fcntl.ioctl(fd, _RUN.number, 0)
        except OSError as error:
            if error.errno == errno.EINTR:
                run[_IMMEDIATE_EXIT] = 0  # whoever set it, it has done its work
                return Interrupted()
            raise _RUN.failed(error.errno or 0, vcpu) from error
        return decode_exit(run)

    def finish(self, vcpu: int = 0) -> None:
        _, run = self._vcpus[vcpu]
        run[_IMMEDIATE_EXIT] = 1
        self.run(vcpu)

    def read(self, gpa: int, length: int) -> bytes:
        self._check(gpa, length)
        return self._memory[gpa : gpa + length]

    def write(self, gpa: int, data: bytes) -> None:
        self._check(gpa, len(data))
        self._memory[gpa : gpa + len(data)] = data

    def _check(self, gpa: int, length: int) -> None:
        if gpa < 0 or gpa + length > len(self._memory):
            raise MemoryFault(f"the VM has no memory at GPA {gpa:#x}, {length} bytes")

    def close(self) -> None:
        for fd, run in self._vcpus:
            run.close()
            os.close(fd)
        os.close(self._fd)
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def execute(fd: int, ioctl: Ioctl[T], vcpu: int = 0) -> T:
    """ioctl(2). Raises IoctlError, which names the ioctl, the vCPU and errno."""
    argument = ioctl.argument
    try:
        if isinstance(argument, int):
            return ioctl.decode(fcntl.ioctl(fd, ioctl.number, argument), b"")
        buffer = bytearray(argument)
        answer = buffer
        if ioctl.pointee is not None:
            answer = bytearray(ioctl.pointee)
            buffer[-8:] = _address(answer).to_bytes(8, sys.byteorder)
        result = fcntl.ioctl(fd, ioctl.number, buffer, True)
    except OSError as error:
        raise ioctl.failed(error.errno or 0, vcpu) from error
    return ioctl.decode(result, bytes(answer))


def _address(buffer: bytearray | mmap.mmap) -> int:
    """HVA; it holds as long as the buffer lives and keeps its size."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))
