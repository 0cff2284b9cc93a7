"""An L1's shell on this terminal."""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tests.lab.channel import CHUNK, Kind, encode
from tests.lab.errors import LabError
from tests.lab.l1 import L1, Request


def run_shell(l1: L1, tree: bytes) -> int:
    """A shell in the tree until it ends; its status. Raises LabError."""
    if not sys.stdin.isatty():
        raise LabError("a shell needs a terminal: use make lab CMD='…'")
    stdin = sys.stdin.fileno()
    l1.request(Request("", tree, terminal=True, environment={"TERM": os.environ.get("TERM", "")}))
    with _raw(stdin), selectors.DefaultSelector() as selector:

        def resize(_number: int = 0, _frame: FrameType | None = None) -> None:
            size = fcntl.ioctl(stdin, termios.TIOCGWINSZ, bytes(8))
            l1.send(encode(Kind.RESIZE, size))

        resize()
        before = signal.signal(signal.SIGWINCH, resize)
        try:
            selector.register(stdin, selectors.EVENT_READ)
            selector.register(l1.channel, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == stdin:
                        l1.send(encode(Kind.INPUT, os.read(stdin, CHUNK)))
                        continue
                    for kind, payload in l1.receive_some():
                        if kind is Kind.EXIT:
                            return int(payload)
                        os.write(sys.stdout.fileno(), payload)
        finally:
            signal.signal(signal.SIGWINCH, before)


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
