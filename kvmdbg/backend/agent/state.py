"""A part of a vCPU's state, as KVM's ioctls get and set it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kvmdbg.kvm.ioctl import Ioctl

T = TypeVar("T")


@dataclass(frozen=True)
class Source(Generic[T]):
    """Registers that one ioctl gets, by the architecture's names."""

    get: Callable[[], Ioctl[T]]
    names: frozenset[str]
    """Those that can be written."""
    values: Callable[[T], dict[str, int]]
    """The registers out of what ``get`` answered; one that this KVM does not have is left out."""
    put: Callable[[T, Mapping[str, int]], Ioctl[Any]] | None = None
    """The ioctl that writes some of them over what ``get`` answered."""
    read_only: frozenset[str] = frozenset()

    @property
    def all_names(self) -> frozenset[str]:
        """Every register in it."""
        return self.names | self.read_only
