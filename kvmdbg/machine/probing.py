"""Running KVM's probes where they can do no harm: in a child process, under two watchdogs.

The child ends a guest that does not come back by a signal; a child that hangs inside the kernel, or
that its KVM kills, loses one probe, and another child goes on behind it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from kvmdbg.errors import KvmError
from kvmdbg.kvm.local import KVM_DEVICE, LocalKvm
from kvmdbg.kvm.probes import PROBES, Prober
from kvmdbg.kvm.suite import Results

GUEST_LIMIT = 1.0
"""Seconds until a guest is told to come back."""
_DEATH_LIMIT = 1.0
_AGAIN = 0.1  # the signal may have come just before KVM_RUN


class _Line(msgspec.Struct, array_like=True):
    """What the child writes: at the begin of a probe, without results; at its end, with them."""

    probe: str
    results: Results | None


@dataclass(frozen=True)
class Limits:
    """Seconds until a child is killed, before its first word and after; and for all children."""

    start: float = 20.0
    probe: float = 5.0
    total: float = 60.0


_NOT_TRIED, _HUNG = "not tried", "hung"


def probe_kvm(device: str = KVM_DEVICE) -> Results:
    """Run all probes in child processes; ``device`` must be one that can be opened."""
    return supervise([sys.executable, "-m", __name__, device], PROBES, Limits())


def supervise(command: Sequence[str], probes: Sequence[str], limits: Limits) -> Results:
    """Results of probes that ``command`` runs (its arguments are their names), whatever it does."""
    found: Results = {}
    left = list(probes)
    deadline = time.monotonic() + limits.total
    while left and time.monotonic() < deadline:
        current = left[0]
        with _Child([*command, *left], limits) as child:
            for line in child.lines():
                current = line.probe
                if line.results is not None:
                    found.update(line.results)
                    left.remove(line.probe)
            if left:
                culprit = current if current in left else left[0]
                found[culprit] = child.fate
                left.remove(culprit)
    return found | dict.fromkeys(left, f"{_NOT_TRIED}: {limits.total:g} s were over")


def is_complete(results: Results) -> bool:
    """False where time ran out, or something hung: on a busy host that says little."""
    return not any(str(outcome).startswith((_NOT_TRIED, _HUNG)) for outcome in results.values())


class _Child:
    """A child that runs probes; a context manager that leaves no process behind."""

    def __init__(self, command: list[str], limits: Limits) -> None:
        self._limits = limits
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._hung = False

    def lines(self) -> Iterator[_Line]:
        """What it says, until it ends or hangs."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        limit, pending = self._limits.start, b""
        while poll.poll(limit * 1000):
            data = os.read(pipe, 65536)
            if not data:
                self._process.wait()
                return
            *complete, pending = (pending + data).split(b"\n")
            yield from (msgspec.json.decode(line, type=_Line) for line in complete)
            limit = self._limits.probe
        self._hung = True

    @property
    def fate(self) -> str:
        """Why it did not finish."""
        if self._hung:
            return f"{_HUNG}, and had to be killed"
        status = self._process.returncode
        if status < 0:
            return f"killed its process: {signal.Signals(-status).name}"
        return f"ended its process with status {status}"

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # One that is stuck in the kernel stays there: not our reason to wait.
            self._process.wait(_DEATH_LIMIT)
        if self._process.stdout is not None:
            self._process.stdout.close()


def main(device: str, names: list[str]) -> None:
    """The child: run the probes and write a line before and after each."""
    signal.signal(signal.SIGALRM, lambda *_: None)  # it only has to interrupt KVM_RUN
    with LocalKvm(device) as kvm, Prober(kvm) as prober:
        for name in names:
            _write(_Line(name, None))
            signal.setitimer(signal.ITIMER_REAL, GUEST_LIMIT, _AGAIN)
            results = prober.probe(name)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _write(_Line(name, results))


def _write(line: _Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except KvmError as error:
        sys.exit(str(error))
