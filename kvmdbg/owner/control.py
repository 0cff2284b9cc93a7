"""The owner's side of the control protocol: connections, and what each request does."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from functools import partial
from pathlib import Path
from typing import Protocol

from kvmdbg.errors import KvmdbgError, OwnerError, RemoteProtocolError, UsageError
from kvmdbg.owner import protocol as p
from kvmdbg.owner.lifetime import Lifetime
from kvmdbg.server.peers import require_same_uid
from kvmdbg.target.breakpoints import ClientId
from kvmdbg.target.events import Resumed, Stopped, VmEvent
from kvmdbg.target.vm import Vm

log = logging.getLogger(__name__)


class Host(Protocol):
    """What the control server needs of the owner."""

    vm: Vm
    lifetime: Lifetime

    def status(self) -> p.VmStatus:
        """What is known of the VM."""
        ...

    async def listen(self, address: str) -> str:
        """Serve RSP on one more address."""
        ...

    async def quit(self) -> None:
        """End the VM, or leave it where it was attached to."""
        ...


class ControlServer:
    """Serves the control socket of one VM."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._numbers = itertools.count(1)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self, path: Path) -> None:
        """Listen on the unix socket ``path``, in a folder that is private already."""
        self._server = await asyncio.start_unix_server(self._accept, path, limit=p.LINE_LIMIT)
        os.chmod(path, 0o600)

    async def close(self) -> None:
        """Stop listening and drop every client."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        connection = _Connection(self._host, reader, writer, next(self._numbers))
        try:
            await connection.serve()
        except asyncio.CancelledError:
            log.info("a control client was there until the end")  # asyncio would log a traceback
        except (OSError, RemoteProtocolError) as error:
            log.warning("a control client was dropped: %s", error)
        except KvmdbgError as error:
            log.warning("a control client was refused: %s", error)
        finally:
            self._connections.discard(task)
            writer.close()


class _Connection:
    """One control client."""

    def __init__(
        self,
        host: Host,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        number: int,
    ) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer
        self._number = number
        self._role = p.Role.USER
        self._orderly = False
        self._follows = False
        self._awaits_stop = False
        self._shall_run = host.vm.stop is None
        """The VM ran when this client came, or it has let it run: so it runs when it leaves."""
        self._calls: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        sock: socket.socket = self._writer.get_extra_info("socket")
        pid = require_same_uid(sock)
        hello = await self._read_hello()
        if hello is None:
            return
        client = f"{hello.kind}-{self._number}"
        self._role = hello.role
        self._host.lifetime.joined(p.ClientInfo(client, pid))
        unsubscribe = self._host.vm.subscribe(partial(self._push, client))
        try:
            while not self._orderly and (line := await self._reader.readline()):
                call = p.decode_call(line)
                if isinstance(call, p.Answer):
                    self._send(call)
                    continue
                task = asyncio.create_task(self._answer(client, call))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
                if isinstance(call.request, p.Bye):
                    await task
        finally:
            unsubscribe()
            for task in tuple(self._calls):
                task.cancel()
            await self._leave(client)

    async def _read_hello(self) -> p.Hello | None:
        line = await self._reader.readline()
        if not line:
            return None
        call = p.decode_call(line)
        if isinstance(call, p.Answer) or not isinstance(call.request, p.Hello):
            raise RemoteProtocolError("a control client did not begin with Hello")
        refusal = ""
        if call.request.version != p.VERSION:
            refusal = (
                f"the VM's owner speaks control protocol {p.VERSION} and this kvmdbg "
                f"{call.request.version}: end the VM with the kvmdbg that started it"
            )
        elif self._host.lifetime.over:
            refusal = "the VM's owner is about to end: run the command again"
        if refusal:
            self._send(p.Answer(call.id, failure=p.Failure.of(OwnerError(refusal))))
            return None
        client = f"{call.request.kind}-{self._number}"
        self._send(p.Answer(call.id, p.encode_result(client)))
        return call.request

    async def _leave(self, client: ClientId) -> None:
        """A client that crashed must not leave the guest patched, or stopped for nobody."""
        vm = self._host.vm
        try:
            await vm.release(client, resume=client in vm.clients.holders and self._shall_run)
        except KvmdbgError as error:
            log.warning("after %s left: %s", client, error)
        orderly = None if self._role is p.Role.BRIDGE else self._orderly
        self._host.lifetime.left(client, orderly=orderly)

    def _push(self, client: ClientId, event: VmEvent) -> None:
        if isinstance(event, Stopped) and self._awaits_stop:
            self._host.vm.clients.hold(client)  # the stop is this client's: it shall find it so
            self._awaits_stop = False
        if self._follows or not isinstance(event, Resumed | Stopped):
            self._send(p.Push(event))

    def _send(self, message: p.Answer | p.Push) -> None:
        if not self._writer.is_closing():
            self._writer.write(p.encode(message))

    async def _answer(self, client: ClientId, call: p.Call) -> None:
        try:
            result = await self._execute(client, call.request)
        except KvmdbgError as error:
            self._send(p.Answer(call.id, failure=p.Failure.of(error)))
        else:
            self._send(p.Answer(call.id, p.encode_result(result)))
        await self._writer.drain()

    async def _execute(self, client: ClientId, request: p.AnyRequest) -> object:
        host, vm = self._host, self._host.vm
        match request:
            case p.Hello():
                raise RemoteProtocolError("a control client said Hello twice")
            case p.Bye():
                self._orderly = True
            case p.Follow():
                self._follows = True
            case p.Status():
                return host.status()
            case p.Quit():
                await host.quit()
            case p.Keep():
                host.lifetime.set_keep()
            case p.Listen(address):
                return await host.listen(address)
            case p.Monitor(command):
                return await vm.monitor.hmp(command)
            case p.Pause() | p.Resume() | p.Reset():
                return await self._execute_run(client, request)
            case p.InsertBreakpoint(spec):
                await vm.insert_breakpoint(client, spec)
            case p.RemoveBreakpoint(spec):
                await vm.remove_breakpoint(client, spec)
            case _:
                return await self._execute_access(request)
        return None

    async def _execute_run(self, client: ClientId, request: p.Pause | p.Resume | p.Reset) -> object:
        vm = self._host.vm
        match request:
            case p.Pause():
                vm.clients.hold(client)
                return await vm.pause()
            case p.Resume(plan):
                vm.clients.require_drive(client)
                self._awaits_stop = self._shall_run = True
                await vm.resume(plan)
                if vm.stop is None:  # otherwise it has stopped again, and the client holds it
                    vm.clients.let_go(client)
            case p.Reset():
                await vm.reset()
        return None

    async def _execute_access(self, request: p.AnyRequest) -> object:
        vm = self._host.vm
        match request:
            case p.ReadBlock(vcpu):
                return await vm.read_block(vcpu)
            case p.ReadRegister(vcpu, number):
                return await vm.read_register(vcpu, number)
            case p.WriteRegisters(vcpu, values):
                await vm.write_registers(vcpu, values)
            case p.ReadMemory(vcpu, address, length):
                return await vm.read_memory(vcpu, address, length)
            case p.WriteMemory(vcpu, address, data):
                await vm.write_memory(vcpu, address, data)
            case p.ReadPhysical(address, length):
                return await vm.read_physical(address, length)
            case p.WritePhysical(address, data):
                await vm.write_physical(address, data)
            case _:
                raise UsageError(f"{type(request).__name__} is no request to a VM")
        return None
