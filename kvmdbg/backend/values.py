"""Register values as every engine takes them."""

from __future__ import annotations

from kvmdbg.arch import Architecture, Register
from kvmdbg.errors import RegisterError


def register_of(arch: Architecture, number: int) -> Register:
    """The register with that number. Raises RegisterError."""
    if not 0 <= number < len(arch.registers):
        raise RegisterError(f"there is no register {number}")
    return arch.registers[number]


def checked_register(arch: Architecture, number: int, value: bytes) -> Register:
    """The register that ``value`` is to be written to. Raises RegisterError for a wrong size."""
    register = register_of(arch, number)
    if len(value) != register.size:
        raise RegisterError(f"register {register.name} has {register.size} bytes, not {len(value)}")
    return register
