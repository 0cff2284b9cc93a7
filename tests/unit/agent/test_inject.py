"""Loading a shared object into a process that runs, which must not notice."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmdbg._native import ffi, lib
from kvmdbg.agent import inject as module
from kvmdbg.agent.inject import inject, inject_here
from kvmdbg.agent.late import discover, take_descriptor
from kvmdbg.agent.process import Process
from kvmdbg.agent.symbols import find_symbol
from kvmdbg.errors import AttachError

SOURCES = Path(__file__).parents[2] / "agent"
Compile = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile one of the sources in tests/agent, with flags; the file made."""

    def build(name: str, *flags: str) -> Path:
        output = tmp_path_factory.mktemp("built") / name
        sources = [str(output), str(SOURCES / f"{name}.c")]
        command = ["gcc", "-D_GNU_SOURCE", "-O1", *flags, "-o", *sources]
        subprocess.run(command, check=True)
        return output

    return build


@pytest.fixture(scope="module")
def library(build: Compile) -> Path:
    return build("stand_in", "-shared", "-fPIC")


class Waiter:
    """A process that waits in ppoll() and compares its registers before and after."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid

    def wake(self) -> str:
        """Give it its event; what it says of its registers."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"x")
        self.process.stdin.flush()
        return self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()


@contextlib.contextmanager
def waiting(
    program: Path, *arguments: str, stand_in: str = "", libraries: Path | None = None
) -> Iterator[Waiter]:
    process = subprocess.Popen(
        [program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"STAND_IN": stand_in, "LD_LIBRARY_PATH": str(libraries or "")},
    )
    with process:
        waiter = Waiter(process)
        try:
            assert waiter.line() == "ready"
            yield waiter
        finally:
            process.kill()


@pytest.fixture(scope="module")
def program(build: Compile) -> Path:
    return build("waiter")


async def test_the_process_does_not_notice(program: Path, library: Path) -> None:
    with waiting(program) as waiter:
        for _ in range(5):
            injection = await inject(waiter.pid, library)
            assert 0 < injection.pause < 1
            descriptor = take_descriptor(waiter.pid, injection.descriptor)
            assert os.read(descriptor, 100) == b"loaded"
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)
            assert waiter.wake() == "same"
        assert Process(waiter.pid).status("TracerPid") == "0"
        assert len(Process(waiter.pid).threads()) == 1


async def test_it_may_be_interrupted_at_any_time(program: Path) -> None:
    with waiting(program) as waiter:
        for _ in range(20):
            stopped = ffi.new("struct remote_thread **")
            assert lib.remote_stop(waiter.pid, 1000, stopped) == 0
            lib.remote_release(stopped[0])
            assert waiter.wake() == "same"


async def test_nobody_who_gives_up_waiting_does_harm(program: Path, library: Path) -> None:
    with waiting(program) as waiter:
        for delay in (0.0, 0.1, 0.2, 0.4):
            # The one before may still be at it, and two cannot.
            with contextlib.suppress(TimeoutError, AttachError):
                async with asyncio.timeout(delay):
                    await inject(waiter.pid, library)
            assert waiter.wake() == "same"
        await asyncio.get_running_loop().shutdown_default_executor()  # all have ended
        assert waiter.wake() == "same"


async def test_a_function_that_crashes_is_no_crash_of_the_process(
    program: Path, library: Path
) -> None:
    with waiting(program, stand_in="crash") as waiter:
        with pytest.raises(AttachError, match="it crashed there"):
            await inject(waiter.pid, library)
        assert waiter.wake() == "same"


async def test_an_agent_that_cannot_start_says_why(program: Path, library: Path) -> None:
    with waiting(program, stand_in="refuse") as waiter:
        with pytest.raises(AttachError, match="cannot start: Too many open files"):
            await inject(waiter.pid, library)
        assert waiter.wake() == "same"


async def test_what_is_no_shared_object_is_refused_by_the_loader(program: Path) -> None:
    with waiting(program) as waiter:
        with pytest.raises(AttachError, match=r"cannot load the agent: .*invalid ELF header"):
            await inject(waiter.pid, Path(__file__))
        assert waiter.wake() == "same"


async def test_another_library_is_refused(program: Path, build: Compile) -> None:
    with waiting(program) as waiter:
        libm = next(m.path for m in Process(os.getpid()).mappings() if "/libm.so" in m.path)
        with pytest.raises(AttachError, match="has no kvmdbg_agent_attach"):
            await inject(waiter.pid, Path(libm))
        assert waiter.wake() == "same"


def test_a_process_that_is_busy_is_refused(
    program: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    with (
        waiting(program, "busy") as waiter,
        pytest.raises(AttachError, match="does not wait for events"),
    ):
        inject_here(waiter.pid, library)


async def test_a_process_that_is_traced_is_refused(program: Path, library: Path) -> None:
    with waiting(program) as waiter:
        stopped = ffi.new("struct remote_thread **")
        assert lib.remote_stop(waiter.pid, 1000, stopped) == 0
        with pytest.raises(AttachError, match=rf"traced by process {os.getpid()} \(.+\)"):
            await inject(waiter.pid, library)
        lib.remote_release(stopped[0])
        assert waiter.wake() == "same"


async def test_a_process_that_is_stopped_is_refused(program: Path, library: Path) -> None:
    with waiting(program) as waiter:
        waiter.process.send_signal(signal.SIGSTOP)
        while not Process(waiter.pid).status("State").startswith("T"):
            time.sleep(0.01)  # noqa: ASYNC251
        with pytest.raises(AttachError, match="does not run"):
            await inject(waiter.pid, library)
        stopped = ffi.new("struct remote_thread **")
        assert lib.remote_stop(waiter.pid, 1000, stopped) == -11, "nor may it be stopped twice"
        waiter.process.send_signal(signal.SIGCONT)
        assert waiter.wake() == "same"


async def test_a_libc_whose_file_is_gone_is_called(
    program: Path, library: Path, tmp_path: Path
) -> None:
    libc = next(m.path for m in Process(os.getpid()).mappings() if m.path.endswith("/libc.so.6"))
    copy = tmp_path / "libc.so.6"
    copy.write_bytes(Path(libc).read_bytes())
    with waiting(program, libraries=tmp_path) as waiter:
        copy.unlink()  # as an upgrade does
        await inject(waiter.pid, library)
        assert waiter.wake() == "same"


async def test_a_static_program_is_refused(build: Compile, library: Path) -> None:
    with waiting(build("waiter", "-static")) as waiter:
        with pytest.raises(AttachError, match="linked statically"):
            await inject(waiter.pid, library)
        assert waiter.wake() == "same"


async def test_what_the_process_cannot_see_is_refused(program: Path, tmp_path: Path) -> None:
    with waiting(program) as waiter:
        with pytest.raises(AttachError, match="does not see"):
            await inject(waiter.pid, tmp_path / "agent.so")
        assert waiter.wake() == "same"


async def test_a_process_that_is_not_there_is_said(library: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:  # noqa: ASYNC220
        pass
    with pytest.raises(AttachError, match=f"no process {process.pid}"):
        await inject(process.pid, library)


def test_symbols_are_found_in_memory() -> None:
    process = Process(os.getpid())
    base = process.module(re.compile(r"libc\.so\.6"))
    assert base is not None
    for name in ("dlopen", "getpid", "ppoll"):
        expected = ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value
        assert find_symbol(process.read, base, name) == expected
    assert find_symbol(process.read, base, "no_such_function") is None
    data = next(m for m in process.mappings() if m.path == "[heap]")
    with pytest.raises(AttachError, match="no 64-bit ELF"):
        find_symbol(process.read, data.start, "dlopen")


def test_only_a_process_with_a_virtual_machine_has_one() -> None:
    with pytest.raises(AttachError, match="has no KVM virtual machine"):
        discover(os.getpid(), [], [])
    with pytest.raises(AttachError, match="cannot be taken: Bad file descriptor"):
        take_descriptor(os.getpid(), 1 << 20)
