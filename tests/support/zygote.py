"""kvmdbg's processes, forked from one that has imported everything: for a test that needs many.

Python and its imports are seconds on an emulated processor. What is forked is the process that
would have been started: it has the files that were meant for it, a session and a name of its own,
and runs the same module as its main one. ``python -m tests.support.zygote SOCKET PROGRAM`` is the
zygote; PROGRAM takes the place of Python for those who start the modules.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

# For those that are forked.
import kvmdbg.agent.inject
import kvmdbg.owner.owner  # noqa: F401

MODULES = ("kvmdbg.owner", "kvmdbg.agent.inject")
"""What is forked; all else that PROGRAM is asked for is executed as ever."""

_HIGH = 200
"""Descriptors from here on are nobody's."""
_MESSAGE, _FDS = 1 << 16, 64

# Without site and the socket module it is there in a tenth of the time.
_PROGRAM = """\
#!{python} -IS
import _socket, array, os, sys
if sys.argv[1:2] != ["-m"] or sys.argv[2] not in {modules}:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
fds = [fd for fd in map(int, os.listdir("/proc/self/fd"))
       if os.path.exists(f"/proc/self/fd/{{fd}}") and os.get_inheritable(fd)]
message = "\\0".join([",".join(map(str, fds)), *sys.argv[2:]]).encode()
zygote = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
zygote.connect({path!r})
rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))
zygote.sendmsg([message], [rights])
sys.exit(int(zygote.recv(16) or 1))
"""


@contextlib.contextmanager
def forking(folder: Path) -> Iterator[None]:
    """Have kvmdbg's processes forked, in the environment of now; ``folder`` is for its files."""
    path, program = folder / "zygote", folder / "python"
    program.write_text(
        _PROGRAM.format(python=sys.executable, modules=MODULES, path=os.fspath(path))
    )
    program.chmod(0o700)
    zygote = subprocess.Popen(
        [sys.executable, "-m", "tests.support.zygote", path, program],
        stdin=subprocess.PIPE,  # its end is the zygote's
        stdout=subprocess.PIPE,
    )
    with zygote, pytest.MonkeyPatch.context() as patch:
        assert zygote.stdout is not None
        assert zygote.stdout.read(1), "the zygote died"
        patch.setattr(sys, "executable", os.fspath(program))
        yield
        assert zygote.stdin is not None
        zygote.stdin.close()


def born(path: str) -> list[str]:
    """Fork whenever somebody asks; returns in the forks only, with module and arguments."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    gc.freeze()  # a collection would copy every page that a fork shares with us
    os.write(1, b"!")
    os.dup2(2, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they are reaped by themselves
    while True:
        if 0 in select.select([0, listener.fileno()], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            break
        connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, fds, _, _ = socket.recv_fds(connection, _MESSAGE, _FDS)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        connection.send(b"%d" % (os.waitstatus_to_exitcode(status) & 0xFF))
        os._exit(0)
    numbers, *argv = message.decode().split("\0")
    _take_place(fds, [int(number) for number in numbers.split(",")])
    os.setsid()
    return argv


def _take_place(fds: list[int], numbers: list[int]) -> None:
    """Have just these open, by these numbers."""
    out_of_the_way = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in fds]
    os.closerange(0, _HIGH)
    for fd, number in zip(out_of_the_way, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def main() -> None:
    """The zygote, and whatever is forked."""
    path, program = sys.argv[1:]
    module, *arguments = born(path)
    sys.executable = program
    sys.argv = [module, *arguments]
    warnings.simplefilter("ignore", RuntimeWarning)  # the module has been imported, on purpose
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
