"""The bridge of --stdio: it acknowledges early, and only once."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmdbg.cli import stdio
from kvmdbg.cli.stdio import FirstPacket
from kvmdbg.errors import UsageError

PACKET = b"$qSupported:xmlRegisters=i386#77"


@given(st.lists(st.integers(1, len(PACKET) + 1), max_size=6))
def test_the_first_packet_is_seen_however_it_is_cut(cuts: list[int]) -> None:
    data = b"+" + PACKET
    first = FirstPacket()
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    seen = [first.complete(data[a:b]) for a, b in itertools.pairwise(edges)]
    assert seen == [False] * (len(seen) - 1) + [True]


@dataclass
class Pipes:
    """The bridge's stdin and stdout, and our ends of them."""

    stdin: BinaryIO
    stdout: BinaryIO
    to_bridge: int
    from_bridge: int


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    stdin, to_bridge = os.pipe()
    from_bridge, stdout = os.pipe()
    os.set_blocking(from_bridge, False)
    with os.fdopen(stdin, "rb") as reader, os.fdopen(stdout, "wb") as writer:
        yield Pipes(reader, writer, to_bridge, from_bridge)
    os.close(from_bridge)


async def _read(fd: int, length: int) -> bytes:
    data = b""
    async with asyncio.timeout(5):
        while len(data) < length:
            try:
                piece = os.read(fd, 100)
            except BlockingIOError:
                await asyncio.sleep(0.01)
            else:
                assert piece, "the bridge closed its stdout"
                data += piece
    return data


async def test_gdb_is_answered_before_the_vm_is_there(pipes: Pipes, tmp_path: Path) -> None:
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readexactly(len(PACKET)))
        writer.write(b"+$OK#9a")
        got.append(await reader.read())
        writer.close()

    booted: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
    bridge = asyncio.create_task(stdio.bridge(lambda: booted, pipes.stdin, pipes.stdout))
    os.write(pipes.to_bridge, PACKET)
    assert await _read(pipes.from_bridge, 1) == b"+"
    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    booted.set_result(tmp_path / "s")
    assert await _read(pipes.from_bridge, 6) == b"$OK#9a", "the second + is dropped"
    os.write(pipes.to_bridge, b"+$D#44")
    os.close(pipes.to_bridge)
    await asyncio.wait_for(bridge, 5)
    assert got == [PACKET, b"+$D#44"]
    server.close()


async def test_a_file_is_refused(pipes: Pipes, tmp_path: Path) -> None:
    def never() -> asyncio.Future[Path]:
        raise AssertionError

    with (tmp_path / "file").open("w+b") as file:
        with pytest.raises(UsageError, match="input is none"):
            await stdio.bridge(never, file, pipes.stdout)
        with pytest.raises(UsageError, match="output is none"):
            await stdio.bridge(never, pipes.stdin, file)


async def test_a_start_that_fails_is_reported(pipes: Pipes) -> None:
    booted: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
    booted.set_exception(FileNotFoundError("no such VM"))
    with pytest.raises(FileNotFoundError):
        await asyncio.wait_for(stdio.bridge(lambda: booted, pipes.stdin, pipes.stdout), 5)
