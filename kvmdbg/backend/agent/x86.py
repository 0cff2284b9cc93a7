"""What the agent engine has to know of x86-64 guests."""

from __future__ import annotations

from kvmdbg.addr import Gva
from kvmdbg.agent.client import AgentClient
from kvmdbg.backend.agent.x86_access import MAX_INSTRUCTION, may_have_read
from kvmdbg.backend.agent.x86_state import SOURCES
from kvmdbg.errors import MemoryFault
from kvmdbg.kvm.x86.registers import get_regs, get_sregs
from kvmdbg.wire.structs import Space

_CR0_PG = 1 << 31

_ENDBR64 = bytes.fromhex("f30f1efa")
_PATCHED_NOPS = (bytes.fromhex("0f1f440000"), bytes.fromhex("6690"))
_JUMPS = (b"\xe9", b"\xeb")
_CALL, _CALL_LENGTH = b"\xe8", 5
_RETURNS = (b"\xc3", b"\xe9")  # ret, or a jump to the thunk that stands for it
_FUNCTION_ALIGNMENT = 16


class X86Guest:
    """Implements :class:`~.guest.GuestArch`."""

    sources = SOURCES

    async def is_early(self, agent: AgentClient, number: int) -> bool:
        """See the Protocol."""
        return not (await agent.call(get_sregs(), number)).cr0 & _CR0_PG

    async def is_patched(self, agent: AgentClient, number: int, address: Gva) -> bool:
        """See the Protocol.

        A static key is a nop or a jump of two or five bytes. At the entry of a function that can be
        traced is a nop of five, or a call: of a function that does nothing, or while it is traced.
        """
        code = await agent.read(Space.GVA, address, 5, vcpu=number)
        if code.startswith((*_PATCHED_NOPS, *_JUMPS)):
            return True
        if not code.startswith(_CALL) or len(code) < _CALL_LENGTH:
            return False
        if address % _FUNCTION_ALIGNMENT == 0:
            return True
        before = Gva(address - len(_ENDBR64))
        if await self._bytes(agent, number, before, len(_ENDBR64)) == _ENDBR64:
            return True
        distance = int.from_bytes(code[1:], "little", signed=True)
        called = Gva((address + _CALL_LENGTH + distance) % (1 << 64))
        body = await self._bytes(agent, number, called, len(_ENDBR64) + 1)
        return body.removeprefix(_ENDBR64).startswith(_RETURNS)

    async def may_have_read(self, agent: AgentClient, number: int, watched: range) -> bool:
        """See the Protocol."""
        regs = await agent.call(get_regs(), number)
        sregs = await agent.call(get_sregs(), number)
        pc = Gva(regs.rip if sregs.cs.l else regs.rip + sregs.cs.base)
        start = Gva(pc - MAX_INSTRUCTION)
        before = await self._bytes(agent, number, start, MAX_INSTRUCTION)
        if not before:  # the page before pc's is not there
            start = Gva(pc & ~0xFFF)
            before = await self._bytes(agent, number, start, pc - start)
        after = await self._bytes(agent, number, pc, MAX_INSTRUCTION)
        return may_have_read(regs, sregs, before + after, len(before), watched)

    async def _bytes(self, agent: AgentClient, number: int, address: Gva, length: int) -> bytes:
        """All of them, or none."""
        try:
            found = await agent.read(Space.GVA, address, length, vcpu=number) if length else b""
        except MemoryFault:
            return b""
        return found if len(found) == length else b""
