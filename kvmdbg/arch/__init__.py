"""Processor architectures as frozen data plus a few pure functions.

To add one: write its register table and page walk beside :mod:`kvmdbg.arch.x86_64`, and name it in
:data:`ARCHITECTURES`.
"""

from __future__ import annotations

from kvmdbg.arch.aarch64 import AARCH64
from kvmdbg.arch.describe import Architecture, Feature, Register
from kvmdbg.arch.x86_64 import X86_64

ARCHITECTURES = {arch.name: arch for arch in (X86_64, AARCH64)}
"""Every architecture, by its QEMU name (``qemu-system-NAME``)."""

__all__ = ["AARCH64", "ARCHITECTURES", "X86_64", "Architecture", "Feature", "Register"]
