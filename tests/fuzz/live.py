"""``python -m tests.fuzz.live [SECONDS]``: hostile bytes to the server of a VM that runs, as
hypothesis draws them; with ``--accel kvm`` to one of the agent engine, on a small guest.

After each client that sends them, and then listens for a while or hangs up, the next one has to be
served at once; at the end the VM is alive and no traceback was logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from pathlib import Path

import kvmdbg
from kvmdbg.machine.verdict import kvm_verdict
from tests.contract.guest import build
from tests.contract.platforms import PLATFORMS
from tests.fuzz.streams import REQUESTS, arguments, drawn, known, pieces, stream
from tests.support.command import fresh_name
from tests.support.rsp_peer import RspPeer

LONGEST = 1.0
"""Seconds in which a well-behaved client has each answer."""

LISTEN = 0.02
"""Seconds that a client listens to the answers."""


async def attack(path: Path, chunks: list[bytes], *, listen: bool) -> None:
    """Send, and hang up."""
    reader, writer = await asyncio.open_unix_connection(path)
    with contextlib.suppress(ConnectionError):
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        if listen:
            async with asyncio.timeout(LISTEN):
                while await reader.read(4096):
                    pass
    writer.close()


async def served(path: Path) -> float:
    """The longest that a well-behaved client waits for an answer, seconds."""
    peer = await RspPeer.unix(path)
    worst = 0.0
    for payload in (b"qSupported:multiprocess+;error-message+", b"?", b"g", b"D"):
        begun = time.monotonic()
        await peer.ask(payload)
        worst = max(worst, time.monotonic() - begun)
    await peer.close()
    return worst


def small_guest(folder: Path) -> str:
    """A definition of the contract's guest, which does without what not every KVM has."""
    firmware = build(PLATFORMS[0], folder).firmware
    definition = folder / "small.toml"
    arguments = ["-bios", str(firmware), "-cpu", "qemu64,-cx16"]
    definition.write_text(f'memory = "64M"\ncpus = 2\nextra_args = {json.dumps(arguments)}\n')
    return str(definition)


async def fuzz(name: str, accel: str, seconds: float, seed: int) -> None:
    """Raises where the server or its VM does not survive."""
    worst, clients = 0.0, 0
    lasting = {"debug": {"on_kill": "detach"}}  # packets that kill are among them
    async with kvmdbg.open(
        name, accel=accel, instance=fresh_name(), run=True, overrides=lasting
    ) as vm:
        print(f"the engine is {vm.status.engine}, under {vm.status.accel}", flush=True)
        path = Path(vm.status.gdb_socket)

        async def outlast(chunks: list[bytes], *, listen: bool) -> None:
            nonlocal worst, clients
            with contextlib.suppress(TimeoutError):
                await attack(path, chunks, listen=listen)
            clients += 1
            waited = await served(path)
            worst = max(worst, waited)
            assert waited <= LONGEST, f"who came after {chunks} had to wait {waited:.2f} s"

        for data in [*REQUESTS, *known()]:
            await outlast(pieces(random.Random(seed), data), listen=True)
        loop = asyncio.get_running_loop()
        end = time.monotonic() + seconds

        def one(rng: random.Random) -> None:
            chunks = pieces(rng, stream(rng, REQUESTS))
            listen = rng.random() < 0.5
            if time.monotonic() < end:
                hostile = outlast(chunks, listen=listen)
                asyncio.run_coroutine_threadsafe(hostile, loop).result()

        while time.monotonic() < end:
            # hypothesis is not asynchronous, and the VM's connection needs the loop meanwhile.
            await asyncio.to_thread(drawn, one, seed + clients, f"live-{accel}")
        assert vm.gone is None
        await vm.pause()
        await vm.quit()
    print(f"{clients} hostile clients, each followed by one that waited {worst:.2f} s at most")


def main() -> None:
    """Fuzz for a while, with a runtime folder of its own."""
    chosen = arguments(__doc__, "--accel")
    accel = chosen.accel or "tcg"
    if accel == "kvm" and "guests" not in (verdict := kvm_verdict()).works:
        print(f"no guest runs under KVM here, the agent engine is not fuzzed: {verdict.reason}")
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        name = small_guest(Path(folder)) if accel == "kvm" else "demo"
        asyncio.run(fuzz(name, accel, chosen.seconds, chosen.seed))
        log = Path(folder, "kvmdbg", "start.log").read_text()
    assert "Traceback" not in log, log
    print("nothing found")


if __name__ == "__main__":
    main()
