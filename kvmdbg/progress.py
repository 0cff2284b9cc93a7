"""How a build tells what it is doing; whoever calls decides how to show it."""

from __future__ import annotations

import sys
from typing import Protocol, TextIO


class Progress(Protocol):
    """Called from the thread that builds, often: implementations must be quick."""

    def step(self, what: str, done: int = 0, total: int | None = None) -> None:
        """Work on *what* stands at *done* of *total* units (bytes; None: no telling)."""

    def note(self, text: str) -> None:
        """Something the user should know, once."""


class PlainProgress:
    """One line per step and per note, for logs and for output that is no terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._current = ""

    def step(self, what: str, done: int = 0, total: int | None = None) -> None:
        if what != self._current:
            self._current = what
            self.note(what)

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class SilentProgress:
    """Tells nobody."""

    def step(self, what: str, done: int = 0, total: int | None = None) -> None:
        pass

    def note(self, text: str) -> None:
        pass
