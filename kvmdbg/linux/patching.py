"""Where Linux patches its own code, and minds what it finds there.

Static keys BUG, and ftrace WARNs and disables itself, when an instruction is not what they left.
Source: arch/x86/kernel/{jump_label,static_call,ftrace,alternative}.c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import MemoryFault
from kvmdbg.target.capabilities import Memory

PATCHERS = (
    "ftrace_modify_all_code",
    "arch_jump_label_transform",
    "arch_jump_label_transform_queue",
    "arch_static_call_transform",
    "text_poke_bp_batch",
    "text_poke_bp",
    "text_poke",
)
"""Which of them there are, and which call others, differs by version; that does no harm."""

_BANNER = b"Linux version "


async def find_patchers(
    memory: Memory, vcpu: VcpuIndex, symbols: Mapping[str, Gva]
) -> Sequence[Gva]:
    """Their entries; none while ``symbols`` are not the running kernel's, or it was moved."""
    try:
        if await memory.read(vcpu, symbols["linux_banner"], len(_BANNER)) != _BANNER:
            return ()
    except (KeyError, MemoryFault):
        return ()
    return [symbols[name] for name in PATCHERS if name in symbols]
