"""Pseudo-terminals and serial lines: who comes, who goes, and what is left."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvmdbg.errors import ListenError
from kvmdbg.server import RspServer
from tests.support import naive_rsp
from tests.support.rsp_peer import RspPeer

from .conftest import FakeHost, as_gdb

NOBODY = 65534
NONBLOCKING = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK


@asynccontextmanager
async def opened(path: str | Path) -> AsyncIterator[RspPeer]:
    """A peer that has a terminal open."""
    fd = os.open(path, NONBLOCKING)
    try:
        peer = await RspPeer.line(fd)
        try:
            yield peer
        finally:
            await peer.close()
    finally:
        os.close(fd)


@pytest.fixture
async def pty(server: RspServer) -> Path:
    """A pseudo-terminal that is served."""
    address = await server.listen("pty:")
    assert server.addresses == (address,)
    return Path(address.removeprefix("pty:"))


# --- pseudo-terminals ----------------------------------------------------------------------------


async def test_one_comes_after_the_other(pty: Path, host: FakeHost) -> None:
    for number in (1, 2, 3):
        async with opened(pty) as peer:
            assert (await (await as_gdb(peer)).ask(b"?")).startswith(b"T0")
            assert host.joined[-1] == f"gdb-{number}"
        await host.wait_left(number)
    assert host.left == [(f"gdb-{number}", False) for number in (1, 2, 3)]


async def test_one_that_has_it_open_and_says_nothing_stops_no_vm(pty: Path, host: FakeHost) -> None:
    await host.vm.resume()
    async with opened(pty):
        await asyncio.sleep(0.3)
    assert host.vm.stop is None
    assert host.joined == []


async def test_who_hangs_up_leaves_a_vm_that_runs_without_its_breakpoints(
    pty: Path, host: FakeHost
) -> None:
    async with opened(pty) as peer:
        gdb = await as_gdb(peer)
        assert await gdb.ask(b"Z0,10,1") == b"OK"
        assert host.fake.engine.breakpoints.specs
    await host.wait_left()
    await host.wait_running()
    assert not host.fake.engine.breakpoints.specs


async def test_who_detaches_gets_his_answer_and_may_begin_again(pty: Path, host: FakeHost) -> None:
    fd = os.open(pty, NONBLOCKING)
    for number in (1, 2):
        gdb = await as_gdb(await RspPeer.line(fd))
        assert await gdb.ask(b"D;1") == b"OK"
        await gdb.close()
        await host.wait_left(number)
    assert host.left == [("gdb-1", True), ("gdb-2", True)]
    os.close(fd)


async def test_what_one_has_not_read_is_not_for_the_next(pty: Path, host: FakeHost) -> None:
    fd = os.open(pty, NONBLOCKING)
    os.write(fd, naive_rsp.packet(b"qXfer:features:read:target.xml:0,ff0"))
    await asyncio.sleep(0.3)
    assert host.joined
    os.close(fd)
    await host.wait_left()
    await asyncio.sleep(0.3)  # until that was noticed
    async with opened(pty) as peer:
        assert (await peer.ask(b"?")).startswith(b"T0")


async def test_it_is_private(pty: Path, host: FakeHost) -> None:
    found = pty.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_cannot_open_it(pty: Path) -> None:
    script = (
        f"import os; os.setgid({NOBODY}); os.setuid({NOBODY}); os.open({str(pty)!r}, os.O_RDWR)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stderr=subprocess.PIPE
    )
    _, said = await process.communicate()
    assert b"PermissionError" in said


async def test_a_link_leads_to_it_while_it_is_served(server: RspServer, tmp_path: Path) -> None:
    link = tmp_path / "line"
    link.symlink_to("/dev/pts/99999")  # left behind by one that was killed
    assert await server.listen(f"pty:{link}") == f"pty:{link}"
    assert await server.listen(f"pty:{link}") == f"pty:{link}"
    async with opened(link) as peer:
        assert (await peer.ask(b"?")).startswith(b"T0")
    await server.close()
    assert not link.is_symlink()
    assert server.addresses == ()


async def test_a_file_in_the_way_of_the_link_stays(server: RspServer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(ListenError, match=r"cannot serve gdb on pty:.*something of that name"):
        await server.listen(f"pty:{file}")
    assert file.read_text() == "precious"


# --- serial lines --------------------------------------------------------------------------------


@dataclass
class Wire:
    """A serial line that a test has the other end of."""

    end: int
    device: str
    own: int


@pytest.fixture
def wire() -> Iterator[Wire]:
    end, own = os.openpty()
    os.set_blocking(end, False)
    wire = Wire(end, os.ttyname(own), own)
    yield wire
    for fd in (wire.end, own):
        if fd >= 0:
            os.close(fd)


async def test_the_next_is_known_by_its_greeting(
    server: RspServer, host: FakeHost, wire: Wire
) -> None:
    assert await server.listen(f"serial:{wire.device}") == f"serial:{wire.device}"
    first = await as_gdb(await RspPeer.line(wire.end))
    assert await first.ask(b"Z0,10,1") == b"OK"
    await first.send(b"vCont;c:p1.1")
    await host.wait_running()
    await first.close()  # the line does not tell
    second = await RspPeer.line(wire.end)
    second.write(b"+")
    assert (await (await as_gdb(second)).ask(b"?")).startswith(b"T")
    assert host.left == [("gdb-1", False)]
    assert not host.fake.engine.breakpoints.specs
    await second.close()
    third = await RspPeer.line(wire.end)  # as lldb begins
    third.write(b"+")
    await third.no_acks()
    assert b"PacketSize" in await third.ask(b"qSupported:xmlRegisters=i386")
    assert (await third.ask(b"?")).startswith(b"T")
    assert await third.ask(b"D;1") == b"OK"
    await host.wait_left(3)
    assert host.left[1:] == [("gdb-2", False), ("gdb-3", True)]
    await third.close()


async def test_a_greeting_that_is_repeated_at_once_is_the_same_client_s(
    server: RspServer, host: FakeHost, wire: Wire
) -> None:
    """gdb sends it again when it waits for more than two seconds."""
    await server.listen(f"serial:{wire.device}")
    peer = await RspPeer.line(wire.end)
    for _ in range(2):
        assert b"PacketSize" in await peer.ask(b"qSupported:multiprocess+")
    assert host.joined == ["gdb-1"]
    await peer.close()


async def test_the_device_is_left_as_it_was(server: RspServer, wire: Wire) -> None:
    before = termios.tcgetattr(wire.own)
    await server.listen(f"serial:{wire.device},19200")
    during = termios.tcgetattr(wire.own)
    assert not during[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert during[4:6] == [termios.B19200] * 2
    await server.close()
    assert termios.tcgetattr(wire.own) == before


async def test_a_line_that_hangs_up_is_said(server: RspServer, host: FakeHost, wire: Wire) -> None:
    await server.listen(f"serial:{wire.device}")
    gdb = await as_gdb(await RspPeer.line(wire.end))
    await gdb.close()
    os.close(wire.end)
    wire.end = -1
    await host.wait_notice("has hung up, and gdb is not served there any more")
    assert host.left == [("gdb-1", False)]
    assert server.addresses == ()


async def test_a_line_is_one_server_s(server: RspServer, wire: Wire) -> None:
    await server.listen(f"serial:{wire.device}")
    other = RspServer(FakeHost())
    with pytest.raises(ListenError, match="another program uses the line"):
        await other.listen(f"serial:{wire.device}")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("/dev/null", "it is no serial line"),
        ("/dev/no-such-line", "No such file or directory; is it there, and may you use it"),
        ("{wire},12345", "no serial line has that speed"),
    ],
)
async def test_what_is_no_line_is_said(
    server: RspServer, wire: Wire, device: str, words: str
) -> None:
    with pytest.raises(ListenError, match=words):
        await server.listen(f"serial:{device.format(wire=wire.device)}")
    assert server.addresses == ()


async def test_who_does_not_read_is_given_up(
    server: RspServer, host: FakeHost, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmdbg.server.connection.MAX_UNREAD", 1 << 12)
    await server.listen(f"serial:{wire.device}")
    question = naive_rsp.packet(b"qXfer:features:read:target.xml:0,4000")
    while not host.left:
        os.write(wire.end, question)
        await asyncio.sleep(0.01)
    assert host.left == [("gdb-1", False)]
