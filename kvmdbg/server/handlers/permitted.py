"""Which commands of QEMU's own monitors, HMP and QMP, a client may give."""

from __future__ import annotations

import re

from kvmdbg.errors import MonitorError
from kvmdbg.server.client import Client

_RUNS = "gdb would not know that the VM runs: use gdb's continue"
_ENDS = "use gdb's kill, or kvmdbg's quit from a shell"
_CUTS = "it could cut the lines over which kvmdbg talks to QEMU"

_REFUSED = {
    "c": _RUNS,
    "cont": _RUNS,
    "q": _ENDS,
    "quit": _ENDS,
    "gdbserver": "kvmdbg debugs the VM through it",
    "chardev-change": _CUTS,  # chardev-remove is safe: QEMU keeps what is in use
}
"""To everybody: what would pull the rug away."""

_ASK_HMP = {"help", "?", "info", "x", "xp", "print", "p", "gva2gpa", "gpa2hva", "gpa2hpa"}
_ASK_QMP = re.compile(r"(x-)?query-.*|qom-(get|list|list-types|list-properties)|device-list-.*")
"""What changes nothing, and so is there for those who only look, too."""


def name_of(line: str) -> str:
    """The command of an HMP line; a format may follow at once, as in ``x/4i``."""
    found = re.match(r"\s*([^\s/]*)", line)
    return found[1] if found else ""


def check_hmp(client: Client, line: str) -> None:
    """Raise MonitorError for a line that nobody may give, Busy for one that who looks may not."""
    name = name_of(line)
    _check(name)
    if name not in _ASK_HMP:
        client.require_drive()


def check_qmp(client: Client, name: str) -> None:
    """As :func:`check_hmp`, for a QMP command."""
    _check(name)
    if not _ASK_QMP.fullmatch(name):
        client.require_drive()


def _check(name: str) -> None:
    if name in _REFUSED:
        raise MonitorError(f"monitor {name} is refused: {_REFUSED[name]}")
