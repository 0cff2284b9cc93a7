"""An ioctl of KVM as a value: what goes in, whom it is for, and how to read what comes out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from kvmdbg.errors import IoctlError
from kvmdbg.kvm._abi import lib
from kvmdbg.kvm.struct import Struct

T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S", bound=Struct)


class Scope(Enum):
    """The kind of file descriptor that takes an ioctl."""

    SYSTEM = "/dev/kvm"
    VM = "the VM"
    VCPU = "vCPU"


@dataclass(frozen=True)
class Ioctl(Generic[T_co]):
    """One ioctl, ready to be executed by any transport.

    ``argument`` is the integer itself (31 bits, as Python's fcntl takes it), or the bytes of the
    struct whose address KVM gets and which it may change. ``decode`` turns ioctl(2)'s return
    value and those bytes into the answer.
    """

    name: str
    scope: Scope
    argument: int | bytes
    decode: Callable[[int, bytes], T_co]
    pointee: bytes | None = None
    """For ``struct kvm_one_reg``, whose last 8 bytes are an address: what that points to, and what
    ``decode`` then gets."""

    @property
    def number(self) -> int:
        """The request number, 32 bits."""
        return int(getattr(lib, self.name))

    def failed(self, code: int, vcpu: int = 0) -> IoctlError:
        """The error for an ioctl that failed with errno ``code``."""
        where = f"vCPU {vcpu}" if self.scope is Scope.VCPU else self.scope.value
        symbol = errno.errorcode.get(code, str(code))
        return IoctlError(
            f"{self.name} on {where} failed: {os.strerror(code)} ({symbol})",
            ioctl=self.name,
            vcpu=vcpu if self.scope is Scope.VCPU else None,
            errno=code,
        )


def command(name: str, scope: Scope, argument: int | bytes = 0) -> Ioctl[int]:
    """An ioctl whose answer is ioctl(2)'s return value."""
    return Ioctl(name, scope, argument, lambda result, data: result)


def getter(name: str, scope: Scope, kind: type[S]) -> Ioctl[S]:
    """An ioctl that fills in a struct."""
    return Ioctl(name, scope, bytes(kind.sizeof()), lambda result, data: kind.decode(data))


def setter(name: str, scope: Scope, value: Struct) -> Ioctl[None]:
    """An ioctl that takes a struct."""
    return Ioctl(name, scope, value.encode(), lambda result, data: None)
