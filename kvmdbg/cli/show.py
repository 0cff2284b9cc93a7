"""How the command line tells what it is doing: rich on a terminal, plain lines otherwise.

All of it goes to stderr: stdout belongs to results, and under ``--stdio`` to gdb.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from kvmdbg.progress import PlainProgress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


def say(text: str) -> None:
    """One line for the user."""
    print(f"kvmdbg: {text}", file=sys.stderr, flush=True)


class TerminalProgress:
    """A line per step, with a bar while its end is known; a :class:`kvmdbg.progress.Progress`."""

    def __init__(self) -> None:
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None
        self._what = ""

    def step(self, what: str, done: int = 0, total: int | None = None) -> None:
        if self._rich is None:
            self._rich = _start_rich()
        if what != self._what or self._task is None:
            self._finish_task()
            self._what = what
            self._task = self._rich.add_task(what, total=total, size="")
        size = f"{done / 2**20:.1f} of {total / 2**20:.1f} MiB" if total else ""
        self._rich.update(self._task, completed=done, total=total, size=size)

    def note(self, text: str) -> None:
        if self._rich is not None:
            self._rich.console.print(f"kvmdbg: {text}", highlight=False)
        else:
            say(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._rich is not None:
            self._finish_task()
            self._rich.stop()
            self._rich = None

    def _finish_task(self) -> None:
        if self._rich is not None and self._task is not None:
            self._rich.update(self._task, total=1, completed=1)
            self._task = None


class LineProgress(PlainProgress):
    """Plain lines, with our name before each."""

    def note(self, text: str) -> None:
        say(text)

    def close(self) -> None:
        """Nothing to leave."""


class Progress:
    """The progress display that suits stderr, as a context manager."""

    def __init__(self) -> None:
        self._display = TerminalProgress() if sys.stderr.isatty() else LineProgress()

    def __enter__(self) -> TerminalProgress | LineProgress:
        return self._display

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.close()


def _start_rich() -> RichProgress:
    # Imported late: it takes longer than all else that a short command does.
    from rich import progress
    from rich.console import Console

    rich = progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=20),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[size]}"),
        console=Console(stderr=True),
        transient=True,
    )
    rich.start()
    return rich
