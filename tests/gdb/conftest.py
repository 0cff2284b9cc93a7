"""gdb sessions on the demo VM, in the two states that tests start from."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from kvmdbg import Vm
from tests.support import demo
from tests.support.gdb import Gdb, start_gdb


@pytest_asyncio.fixture
async def gdb(kvmdbg_vm: Vm) -> AsyncIterator[Gdb]:
    """A gdb, connected to the test's VM as that is just now, with the kernel's symbols."""
    async with start_gdb(demo.artefact("vmlinux"), kvmdbg_vm.status.gdb_socket) as gdb:
        yield gdb


@pytest_asyncio.fixture
async def booted_gdb(kvmdbg_vm: Vm) -> AsyncIterator[Gdb]:
    """The same once the guest has booted (mark the test with run=True); it has the symbols of the
    workload too."""
    await demo.booted(kvmdbg_vm)
    async with start_gdb(demo.artefact("vmlinux"), kvmdbg_vm.status.gdb_socket) as gdb:
        await gdb.cli(f"add-symbol-file {demo.artefact('workload')}")
        yield gdb
