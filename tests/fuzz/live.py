"""``python -m tests.fuzz.live [SECONDS]``: hostile bytes to the server of a VM that runs, as
hypothesis draws them.

After each client that sends them, and then listens for a while or hangs up, the next one has to be
served at once; at the end the VM is alive and no traceback was logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
from pathlib import Path

import kvmdbg
from tests.fuzz.streams import REQUESTS, arguments, drawn, known, pieces, stream
from tests.support.command import fresh_name
from tests.support.rsp_peer import RspPeer

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
    """Seconds until a well-behaved client has all that it asked for."""
    begun = time.monotonic()
    peer = await RspPeer.unix(path)
    await peer.ask(b"qSupported:multiprocess+;error-message+")
    await peer.ask(b"?")
    await peer.ask(b"g")
    await peer.ask(b"D")
    await peer.close()
    return time.monotonic() - begun


async def fuzz(seconds: float, seed: int) -> None:
    """Raises where the server or its VM does not survive."""
    worst, clients = 0.0, 0
    lasting = {"debug": {"on_kill": "detach"}}  # packets that kill are among them
    async with kvmdbg.open("demo", instance=fresh_name(), run=True, overrides=lasting) as vm:
        path = Path(vm.status.gdb_socket)

        async def outlast(chunks: list[bytes], *, listen: bool) -> None:
            nonlocal worst, clients
            with contextlib.suppress(TimeoutError):
                await attack(path, chunks, listen=listen)
            clients += 1
            worst = max(worst, await served(path))

        for data in known():
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
            await asyncio.to_thread(drawn, one, seed + clients)
        assert vm.gone is None
        await vm.pause()
        await vm.quit()
    print(f"{clients} hostile clients, each followed by one that was served within {worst:.2f} s")


def main() -> None:
    """Fuzz for a while, with a runtime folder of its own."""
    seconds, seed = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        asyncio.run(fuzz(seconds, seed))
        log = Path(folder, "kvmdbg", "start.log").read_text()
    assert "Traceback" not in log, log
    print("nothing found")


if __name__ == "__main__":
    main()
