"""/proc, read for processes of every kind."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from kvmdbg.machine import processes
from kvmdbg.machine.processes import (
    ProcessId,
    command_line,
    executable,
    owner_uid,
    pids,
    socket_inodes,
    working_directory,
)

NOBODY = 2**22 - 1


def test_ourselves() -> None:
    pid = os.getpid()
    process = ProcessId.of(pid)
    assert process is not None
    assert process.alive
    assert ProcessId.parse(str(process)) == process
    assert not ProcessId(pid, process.start_time + 1).alive
    assert pid in pids()
    assert command_line(pid)
    assert executable(pid) == Path("/proc/self/exe").resolve().name
    assert owner_uid(pid) == os.getuid()
    assert working_directory(pid) == Path.cwd()


def test_nobody() -> None:
    assert ProcessId.of(NOBODY) is None
    assert command_line(NOBODY) == []
    assert executable(NOBODY) is None
    assert owner_uid(NOBODY) is None
    assert working_directory(NOBODY) is None
    assert socket_inodes(NOBODY) == set()


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert ProcessId.of(child.pid) is None
    child.wait()


def test_a_name_with_parentheses_and_spaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "7").mkdir()
    fields = ["S", *("0" for _ in range(18)), "4321", "0"]
    (tmp_path / "7" / "stat").write_text(f"7 (a) Z (b) {' '.join(fields)}\n")
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert ProcessId.of(7) == ProcessId(7, 4321)


def test_sockets() -> None:
    with socket.socket(socket.AF_UNIX) as ours:
        assert os.fstat(ours.fileno()).st_ino in socket_inodes(os.getpid())
