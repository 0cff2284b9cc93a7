"""Listening for RSP clients, and letting in those who may."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from pathlib import Path

from kvmdbg.errors import KvmdbgError, ListenError
from kvmdbg.server.address import (
    Address,
    PtyAddress,
    SerialAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
)
from kvmdbg.server.client import Client
from kvmdbg.server.connection import Connection
from kvmdbg.server.host import Host
from kvmdbg.server.lines import LineServer, open_line
from kvmdbg.server.peers import admit
from kvmdbg.server.session import Session

log = logging.getLogger(__name__)


class RspServer:
    """Serves RSP for one VM on any number of addresses."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._numbers = itertools.count(1)
        self._listeners: dict[Address, asyncio.Server] = {}
        self._lines: dict[Address, LineServer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that are served."""
        return tuple(map(str, (*self._listeners, *self._lines)))

    async def listen(self, text: str) -> str:
        """Serve one more address, and return it as it came out. Raises ListenError."""
        address = parse_address(text)
        if address in self._listeners or address in self._lines:
            return str(address)
        if isinstance(address, PtyAddress | SerialAddress):
            return self._serve_line(address)
        sock = _bind(address)
        if isinstance(address, TcpAddress):
            address = TcpAddress(address.host, sock.getsockname()[1])
        loop = asyncio.get_running_loop()
        if isinstance(address, UnixAddress):
            server = await loop.create_unix_server(self._connection, sock=sock)
        else:
            server = await loop.create_server(self._connection, sock=sock)
        self._listeners[address] = server
        return str(address)

    def _serve_line(self, wanted: PtyAddress | SerialAddress) -> str:
        line, address = open_line(wanted)

        def gone(reason: str) -> None:
            del self._lines[address]
            line.close()
            self._host.vm.notice(reason)

        self._lines[address] = LineServer(line, self._serve, gone)
        return str(address)

    async def close(self) -> None:
        """Stop listening, and drop every client as if it had hung up."""
        for address, server in self._listeners.items():
            server.close()
            if isinstance(address, UnixAddress):
                address.path.unlink(missing_ok=True)
        self._listeners.clear()
        for line_server in self._lines.values():
            line_server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line_server in self._lines.values():
            await line_server.close()
        self._lines.clear()

    def _connection(self) -> Connection:
        return Connection(self._serve)

    async def _serve(self, connection: Connection) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            pid = 0 if connection.on_line else await admit(connection.socket)
            client = Client(f"gdb-{next(self._numbers)}", self._host)
            await self._serve_admitted(client, connection, pid)
        except KvmdbgError as error:
            log.warning("%s", error)
            self._host.vm.notice(str(error))
        finally:
            self._tasks.discard(task)

    async def _serve_admitted(self, client: Client, connection: Connection, pid: int) -> None:
        self._host.vm.clients.join(client.id)
        session = Session(client, connection)
        self._host.client_joined(client.id, pid)
        try:
            await session.run()
        finally:
            self._host.client_left(client.id, orderly=session.orderly)


def _bind(address: UnixAddress | TcpAddress) -> socket.socket:
    try:
        if isinstance(address, UnixAddress):
            return _bind_unix(address.path)
        family = socket.AF_INET6 if address.host.version == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bound(sock, (str(address.host), address.port))
    except OSError as error:
        raise ListenError(
            f"cannot listen on {address}: {error.strerror}; choose another address"
        ) from error


def _bound(sock: socket.socket, name: str | tuple[str, int]) -> socket.socket:
    try:
        sock.bind(name)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _bind_unix(path: Path) -> socket.socket:
    """A socket that nobody else can connect to from the moment that it exists."""
    if path.is_socket() and not _is_served(path):
        path.unlink()  # left behind by a process that was killed
    mask = os.umask(0o177)
    try:
        return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(path))
    finally:
        os.umask(mask)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True
