"""gdb's ``monitor``: a few commands of our own, and QEMU's monitor."""

from __future__ import annotations

import json

from kvmdbg.errors import MonitorError
from kvmdbg.rsp.server.commands.monitor import Monitor
from kvmdbg.server.client import Client, Outcome, Printed
from kvmdbg.target.vm import Vm

HELP = """\
monitor help                    this text
monitor breakpoints             what became of each: int3, debug register, why not armed
monitor help COMMAND            QEMU's help on one of its commands
monitor system_reset            reset the machine; it stays stopped
monitor qmp COMMAND [JSON]      a QMP command with its arguments, and its result
monitor COMMAND                 any other is QEMU's own, e.g. monitor info mtree
"""

NO_BREAKPOINTS = (
    "there are none: gdb takes its own out while the VM is stopped, unless told to "
    "set breakpoint always-inserted on\n"
)

_RUNS = "gdb would not know that the VM runs: use gdb's continue"
_ENDS = "use gdb's kill, or kvmdbg's quit from a shell"
_CUTS = "it could cut the lines over which kvmdbg talks to QEMU"

REFUSED = {
    "c": _RUNS,
    "cont": _RUNS,
    "q": _ENDS,
    "quit": _ENDS,
    "gdbserver": "kvmdbg debugs the VM through it",
    "chardev-change": _CUTS,
    "chardev-remove": _CUTS,
}
"""Commands of QEMU's monitors, HMP and QMP, that would pull the rug away, and why."""


async def run(client: Client, command: Monitor) -> Outcome:
    """``qRcmd``"""
    line = command.line.strip()
    name, _, rest = line.partition(" ")
    if line in ("", "help"):
        return Printed(HELP)
    if name == "system_reset":
        await client.vm.reset()
        return Printed("the VM was reset\n")
    if line == "breakpoints":
        return Printed(await _breakpoints(client.vm))
    if name == "qmp":
        return Printed(await _qmp(client.vm, rest.strip()))
    _check(name)
    return Printed(await client.vm.monitor.hmp(line))


async def _breakpoints(vm: Vm) -> str:
    lines = []
    for placement, clients in await vm.describe_breakpoints():
        hits = "" if placement.hits is None else f", hit {placement.hits} times"
        note = f" ({placement.note})" if placement.note else ""
        whose = ", ".join(sorted(clients))
        lines.append(f"{placement.spec}: {placement.how}{hits}{note}; {whose}\n")
    return "".join(lines) or NO_BREAKPOINTS


def _check(name: str) -> None:
    if name in REFUSED:
        raise MonitorError(f"monitor {name} is refused: {REFUSED[name]}")


async def _qmp(vm: Vm, line: str) -> str:
    name, _, text = line.partition(" ")
    _check(name)
    if name == "system_reset":
        await vm.reset()
        return "{}\n"
    try:
        arguments = json.loads(text) if text.strip() else None
    except ValueError as error:
        raise MonitorError(f"the arguments of {name} are no JSON: {error}") from error
    if not isinstance(arguments, dict | None):
        raise MonitorError(f"the arguments of {name} are no JSON object")
    return json.dumps(await vm.monitor.qmp(name, arguments), indent=2) + "\n"
