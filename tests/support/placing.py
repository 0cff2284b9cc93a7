"""Having the guest's vCPUs execute code of the test's own."""

from __future__ import annotations

import pytest

from tests.support import demo
from tests.support.gdb import Gdb


async def put_vcpus_into(gdb: Gdb, code: bytes, cpus: int, *, apart: int = 0) -> int:
    """Make every vCPU execute ``code``, in the kernel; its address. The VM is stopped.

    ``apart``: bytes from one vCPU's code to the next one's; 0: they share it. Where it is: at
    panic(), which nobody calls.
    """
    await gdb.cli("hbreak *do_sys_openat2")
    for _ in range(50):
        await gdb.cont()
        if not any([await ring(gdb, number) for number in range(cpus)]):
            break
    else:
        pytest.fail("the vCPUs were never in the kernel all at once")
    await gdb.cli("delete")
    address = demo.kernel()["panic"]
    for number in range(cpus):
        start = address + number * apart
        await gdb.mi(f"-data-write-memory-bytes {start} {code.hex()}")
        await gdb.mi(f"-thread-select {number + 1}")
        await gdb.cli(f"set $rip = {start}")
    return address


async def ring(gdb: Gdb, vcpu: int) -> int:
    """The privilege level that a vCPU is at."""
    await gdb.mi(f"-thread-select {vcpu + 1}")
    return await gdb.value("$cs") & 3
