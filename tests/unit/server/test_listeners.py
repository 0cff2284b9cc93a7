"""Listening, and who is let in."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kvmdbg.errors import ListenError, PeerRefused
from kvmdbg.rsp.server.commands import Command
from kvmdbg.server import RspServer
from kvmdbg.server.connection import Connection
from kvmdbg.server.peers import admit, require_same_uid
from tests.support.rsp_peer import RspPeer

from .conftest import FakeHost

NOBODY = 65534

# Connects as another user, asks, and prints what came back.
STRANGER = f"""
import os, socket, sys
os.setgid({NOBODY}); os.setuid({NOBODY})
family, *name = sys.argv[1:]
sock = socket.socket(getattr(socket, family))
sock.connect(name[0] if family == "AF_UNIX" else (name[0], int(name[1])))
sock.settimeout(10)
try:
    sock.sendall(b"$?#3f")
    print(sock.recv(100))
except ConnectionError:
    print(b"")
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


async def ask_as_stranger(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STRANGER, *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    return (out + err).decode()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize("host_name", ["127.0.0.1", "[::1]"])
async def test_tcp(server: RspServer, host: FakeHost, host_name: str) -> None:
    address = await server.listen(f"tcp:{host_name}:0")
    assert server.addresses == (address,)
    peer = await RspPeer.tcp(host_name.strip("[]"), port_of(address))
    assert (await peer.ask(b"?")).startswith(b"T05")
    await peer.close()


@needs_root
async def test_tcp_refuses_another_user_without_a_word(server: RspServer, host: FakeHost) -> None:
    address = await server.listen("tcp:127.0.0.1:0")
    assert await ask_as_stranger("AF_INET", "127.0.0.1", str(port_of(address))) == "b''\n"
    assert host.joined == []
    assert host.notices == [f"a client was refused: it is user {NOBODY}'s, and the VM is user 0's"]


class RecordingTransport(asyncio.Transport):
    """Records what is written; pays no attention to pauses, as CPython 3.11.2's does not."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True


async def test_bytes_that_arrive_before_admission_wait_for_it() -> None:
    admitted = asyncio.Event()

    async def serve(connection: Connection) -> None:
        await admitted.wait()
        connection.start()
        assert isinstance(await connection.inbox.get(), Command)

    transport = RecordingTransport()
    connection = Connection(serve)
    connection.connection_made(transport)
    connection.data_received(b"$?#")
    connection.data_received(b"3f")
    await asyncio.sleep(0.02)
    assert transport.written == b""
    admitted.set()
    await asyncio.sleep(0.02)
    assert transport.written == b"+"


async def test_a_flood_before_admission_is_cut_off() -> None:
    async def serve(connection: Connection) -> None:
        await asyncio.sleep(60)

    transport = RecordingTransport()
    connection = Connection(serve)
    connection.connection_made(transport)
    for _ in range(100):
        connection.data_received(b"x" * 4096)
    assert transport.closed
    assert transport.written == b""


@needs_root
async def test_unix_refuses_another_user_without_a_word(server: RspServer, host: FakeHost) -> None:
    folder = Path(tempfile.mkdtemp())  # where others can reach it, unlike tmp_path
    folder.chmod(0o755)
    path = folder / "s"
    try:
        await server.listen(f"unix:{path}")
        assert "PermissionError" in await ask_as_stranger("AF_UNIX", str(path))
        path.chmod(0o666)  # even where the mode does not help
        assert await ask_as_stranger("AF_UNIX", str(path)) == "b''\n"
    finally:
        await server.close()
        folder.rmdir()
    assert host.joined == []
    assert len(host.notices) == 1


async def test_a_tcp_connection_whose_owner_is_unknown_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert await admit(accepted) == 0
            # The kernel says that a closed socket is root's; that must not help anybody.
            client.sendall(b"$?#3f")
            client.close()
            with pytest.raises(PeerRefused, match="does not say"):
                await admit(accepted)


def test_same_uid_over_unix_yields_the_pid() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert require_same_uid(ours) == os.getpid()


async def test_the_unix_socket_is_private_and_goes_away(server: RspServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.close()
    assert not path.exists()


async def test_a_socket_that_is_served_is_not_taken_over(path: Path, tmp_path: Path) -> None:
    other = RspServer(FakeHost())
    with pytest.raises(ListenError, match="in use"):
        await other.listen(f"unix:{path}")
    await (await RspPeer.unix(path)).close()


async def test_a_socket_that_was_left_behind_is_replaced(server: RspServer, tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    await server.listen(f"unix:{stale}")
    peer = await RspPeer.unix(stale)
    assert (await peer.ask(b"?")).startswith(b"T05")
    await peer.close()


async def test_a_file_in_the_way_is_left_alone(server: RspServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ListenError, match="in use"):
        await server.listen(f"unix:{tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "precious"


async def test_an_address_is_served_once(server: RspServer, path: Path) -> None:
    assert await server.listen(f"unix:{path}") == f"unix:{path}"
    assert len(server.addresses) == 1


async def test_closing_drops_the_client(server: RspServer, gdb: RspPeer, host: FakeHost) -> None:
    await server.close()
    assert await gdb.at_end()
    assert host.left == [("gdb-1", False)]
