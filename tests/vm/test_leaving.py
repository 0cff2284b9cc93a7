"""What becomes of a booted VM when a script that uses it fails, or its debugger is told to end."""

from __future__ import annotations

import asyncio
import os
import signal
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


HASTY_GDB = """\
#!/usr/bin/env python3
import socket, sys, time

path = next(word for word in sys.argv if word.startswith("target remote ")).split()[-1]
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(path)
    said = b""

    def send(packet):
        peer.sendall(b"+$%b#%02x" % (packet, sum(packet) % 256))

    for breakpoints, address in enumerate(range(1 << 20, 200 + (1 << 20)), 1):
        send(b"Z1,%x,1" % address)
        while said.count(b"$OK#9a") < breakpoints:
            said += peer.recv(1000) or sys.exit("it hung up")
    send(b"vCont;c")
    print("runs", file=sys.stderr, flush=True)
    time.sleep(1000)
"""


async def test_a_debugger_and_its_gdb_are_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As timeout(1) does; a gdb that ends without a word has not crashed then."""
    program = tmp_path / "gdb"
    program.write_text(HASTY_GDB)
    program.chmod(0o755)
    monkeypatch.setenv("KVMDBG_GDB", str(program))
    name = command.fresh_name()
    async with command.foreground("--vm", "demo", "--name", name, "--gdb") as debugger:
        await debugger.wait_line("runs")
        os.killpg(debugger.process.pid, signal.SIGTERM)
        assert await debugger.wait_end() == 143
    await vms.wait_ended(name)
