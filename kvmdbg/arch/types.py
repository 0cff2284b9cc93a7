"""XML of register types. Source: GDB manual, "Target Description Format"."""

from __future__ import annotations


def flags(name: str, size: int, bits: str) -> str:
    """A ``flags`` type of ``size`` bytes from words ``NAME:bit`` or ``NAME:first-last`` (no name:
    always set)."""
    fields = []
    for word in bits.split():
        field, _, place = word.partition(":")
        first, _, last = place.partition("-")
        fields.append(f'<field name="{field}" start="{first}" end="{last or first}"/>')
    return "\n".join((f'<flags id="{name}" size="{size}">', *fields, "</flags>"))
