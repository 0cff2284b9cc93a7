"""What becomes of a booted VM when a script that uses it fails, or its debugger is told to end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import kvmdbg
from tests.support import command, vms


async def test_an_exception_in_the_block_is_an_orderly_leave() -> None:
    name = command.fresh_name()
    with pytest.raises(ValueError, match="boom"):
        async with kvmdbg.open("demo", instance=name):
            raise ValueError("boom")
    await vms.wait_ended(name)


@pytest.mark.parametrize(("gdb", "status"), [(False, 0), (True, 143)], ids=["serving", "gdb"])
async def test_a_debugger_that_is_told_to_end_leaves_in_good_order(
    gdb: bool, status: int, tmp_path: Path
) -> None:
    name, connected = command.fresh_name(), tmp_path / "connected"
    options = ["--gdb", "--", "-ex", f"shell touch {connected}", "-ex", "continue"] if gdb else []
    async with command.foreground("--vm", "demo", "--name", name, *options) as debugger:
        await debugger.wait_line(f"VM {name} is frozen" if gdb else "Ctrl-C leaves")
        async with asyncio.timeout(60):
            while gdb and not connected.exists():  # noqa: ASYNC110 (gdb's doing)
                await asyncio.sleep(0.05)
        debugger.process.terminate()
        assert await debugger.wait_end() == status
    await vms.wait_ended(name)
