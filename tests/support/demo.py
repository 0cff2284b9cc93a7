"""The demo images as the tests see them: files, symbols, and the states they wait for.

Where no image is named, the one of x86-64 is meant.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import re
from functools import cache
from pathlib import Path

from kvmdbg import Vm
from kvmdbg.errors import MemoryFault, WaitTimeout
from kvmdbg.images import ImageStore, builtin_dir, load_recipe
from kvmdbg.linux.symbols import ElfSymbols

PROMPT = "demo# "
"""What the guest prints last: from here on only the workload runs."""

RECORD = b"/tmp/workload"
"""The file that the workload opens all the time."""

AT_FDCWD = -100 % 2**64
IF = 1 << 9
"""The interrupt flag in eflags."""

# Entry code and C handlers of external interrupts, on the cloud kernel; exceptions are asm_exc_*.
_INTERRUPT = re.compile(
    r"(__)?(asm_)?(sysvec_\w+|common_interrupt\w*)|irq_entries_start|sysvec_\w+"
)


@cache
def artefact(name: str, image: str = "demo") -> Path:
    """A file of a demo image, which is built if it is not there."""
    return ImageStore().ensure(load_recipe(builtin_dir() / image / "recipe.toml")).artefact(name)


@cache
def kernel(image: str = "demo") -> ElfSymbols:
    """The kernel's symbols."""
    return ElfSymbols(artefact("vmlinux", image))


@cache
def workload(image: str = "demo") -> ElfSymbols:
    """The symbols of the user program."""
    return ElfSymbols(artefact("workload", image))


@cache
def _text(image: str) -> tuple[list[int], list[str]]:
    ordered = sorted((address, name) for name, address in kernel(image).items())
    return [address for address, _ in ordered], [name for _, name in ordered]


def function_at(address: int, image: str = "demo") -> str:
    """The kernel symbol that ``address`` is in."""
    addresses, names = _text(image)
    return names[bisect.bisect_right(addresses, address) - 1]


def is_interrupt(address: int) -> bool:
    """True in the entry code or the handler of an external interrupt."""
    return _INTERRUPT.fullmatch(function_at(address)) is not None


async def booted(vm: Vm) -> None:
    """Wait until the guest has booted and only the workload runs."""
    await wait_console(vm, PROMPT)


async def wait_console(vm: Vm, text: str, timeout: float = 30.0) -> str:
    """As :meth:`Vm.wait_console`. Where the guest hangs, say what its vCPUs are at: that happens
    too rarely to be looked at again."""
    try:
        return await vm.wait_console(text, timeout)
    except WaitTimeout as error:
        error.add_note(f"notices: {vm.notices}\n" + await vm.monitor("info status"))
        for _ in range(3):
            if vm.stopped is None:
                await vm.pause()
            for vcpu in range(vm.vcpus):
                error.add_note(await _position(vm, vcpu))
            error.add_note(await vm.monitor("info registers -a"))
            await vm.resume()
            await asyncio.sleep(0.1)
        raise


async def _position(vm: Vm, vcpu: int) -> str:
    """Where a vCPU is, and what on its stack looks like return addresses."""
    at = await vm.registers(vcpu)
    pc, sp = at[vm.arch.pc], at[vm.arch.sp]
    addresses = [pc]
    with contextlib.suppress(MemoryFault):
        page_end = (sp | 0xFFF) + 1
        words = memoryview(await vm.read(sp, (page_end - sp) & ~7, vcpu)).cast("Q")
        begin, end = kernel()["_stext"], kernel()["_etext"]
        addresses += [word for word in words if begin <= word < end]
    called = " < ".join(map(function_at, addresses[:30]))
    return f"vCPU {vcpu} at {pc:#x}, eflags {at['eflags']:#x}: {called}"


async def tick(vm: Vm, image: str = "demo") -> None:
    """Let the VM run to the next call of workload_compute; user memory can be read there."""
    await vm.run_to(workload(image)["workload_compute"])


async def iterations(vm: Vm, image: str = "demo") -> int:
    """How often the workload has ticked; the VM is stopped in the next tick."""
    await tick(vm, image)
    return await vm.read_int(workload(image)["workload_iterations"])
