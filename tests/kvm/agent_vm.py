"""A VM of another process, which the agent in it drives: a Transport."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from kvmdbg.agent.client import AgentClient
from kvmdbg.agent.connection import AgentConnection
from kvmdbg.agent.late import library
from kvmdbg.errors import LocalProtocolError
from kvmdbg.kvm.exits import ArmDebug, Debug, Exit, Interrupted, decode_exit
from kvmdbg.kvm.ioctl import Ioctl, Scope, command
from kvmdbg.wire.structs import Action, Flags, Space, Stop, StopKind

T = TypeVar("T")

_PROGRAM = Path(__file__).parents[1] / "support" / "vmm.py"
_RUN = command("KVM_RUN", Scope.VCPU)


class AgentVm:
    """One vCPU in :mod:`tests.support.vmm`, whose every exit is reported by the agent."""

    def __init__(self, runner: asyncio.Runner, client: AgentClient, limit: float) -> None:
        self._runner = runner
        self._client = client
        self._limit = limit
        self._rung = asyncio.Event()
        self._has_run = False
        client.on_doorbell(lambda _: self._rung.set())

    def call(self, ioctl: Ioctl[T], vcpu: int = 0) -> T:
        return self._do(self._client.call(ioctl, vcpu))

    def run(self, vcpu: int = 0) -> Exit:
        self._has_run = True
        stop = self._do(self._next_stop(vcpu))
        if stop is None:
            return Interrupted()
        exit = decode_exit(self._do(self._client.run_page(vcpu)))
        if stop.exception and not isinstance(exit, Debug | ArmDebug):
            raise _RUN.failed(stop.exception, vcpu)
        return exit

    def finish(self, vcpu: int = 0) -> None:
        if self._has_run:
            raise LocalProtocolError("a VM behind an agent serves one case")

    def read(self, gpa: int, length: int) -> bytes:
        return self._do(self._client.read(Space.GPA, gpa, length))

    def write(self, gpa: int, data: bytes) -> None:
        self._do(self._client.write(Space.GPA, gpa, data))

    async def _next_stop(self, vcpu: int) -> Stop | None:
        self._rung.clear()
        await self._client.resume([Action(vcpu)])
        try:
            async with asyncio.timeout(self._limit):
                await self._rung.wait()
        except TimeoutError:
            await self._client.hold()
        stop = (await self._client.stops())[vcpu]
        return None if stop.kind is StopKind.RUNNING else stop

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)


@contextlib.contextmanager
def agent_vm(folder: Path, limit: float) -> Iterator[AgentVm]:
    """A VM whose guests get ``limit`` seconds; ``folder`` is for the agent's socket."""
    path = folder / "agent.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env=os.environ
            | {"LD_PRELOAD": str(library()), "KVMDBG_AGENT_FD": str(listener.fileno())},
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        runner = stack.enter_context(asyncio.Runner())
        client = runner.run(_connect(path))
        process.stdin.write(b"x")
        process.stdin.flush()
        try:
            yield AgentVm(runner, client, limit)
        finally:
            runner.run(_leave(client))


async def _connect(path: Path) -> AgentClient:
    client = AgentClient(await AgentConnection.connect(path))
    await client.configure(Flags.RAW_EXITS)
    await client.hold()
    return client


async def _leave(client: AgentClient) -> None:
    client.close()
    await client.wait_lost()
