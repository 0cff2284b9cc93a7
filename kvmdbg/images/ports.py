"""Debian's ports: what it calls each architecture, and which programs compile for it."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class Port:
    """One port."""

    name: str
    """Debian's name for the architecture."""
    tools: str
    """How the names of its cross tools begin."""


PORTS = {
    "x86_64": Port("amd64", "x86_64-linux-gnu-"),
    "aarch64": Port("arm64", "aarch64-linux-gnu-"),
}
"""By architecture, as :data:`kvmdbg.arch.ARCHITECTURES` names them."""


def compiler(arch: str) -> str:
    """The C compiler whose programs run on ``arch``: this machine's own where that is enough."""
    return "cc" if arch == platform.machine() else f"{PORTS[arch].tools}gcc"


def stripper(arch: str) -> str:
    """The program that takes symbols out of programs for ``arch``."""
    return "strip" if arch == platform.machine() else f"{PORTS[arch].tools}strip"
