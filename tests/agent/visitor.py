"""Attaches late, debugs without end, and is there to be killed.

python visitor.py STATE ADDRESS PID THREADS SLOTS: the last two as JSON. It prints "ready" in STATE:
"hot", a breakpoint at ADDRESS is hit and stepped over all the time; "stopped", one was hit;
"held", by request.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from kvmdbg.agent.client import AgentClient
from kvmdbg.agent.late import attach
from kvmdbg.wire.structs import Action, ActionFlags, ActionKind, Kind, Slot


async def main(state: str, address: str, pid: str, threads: str, slots: str) -> None:
    client = await attach(
        int(pid),
        msgspec.json.decode(threads, type=list[int]),
        msgspec.json.decode(slots, type=list[Slot]),
    )
    await client.hold()
    if state != "held":
        await client.insert(Kind.HARDWARE, int(address), 1)
        await next_stop(client)
    if state == "hot":
        await next_stop(client)
    print("ready", flush=True)
    while state == "hot":
        await next_stop(client)
    await client.wait_lost()


async def next_stop(client: AgentClient) -> None:
    rung = asyncio.Event()
    client.on_doorbell(lambda _: rung.set())
    await client.resume(
        Action(vcpu.index, ActionKind.CONTINUE, ActionFlags.STEP_OVER)
        for vcpu in await client.vcpus()
    )
    await rung.wait()
    await client.stops()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
