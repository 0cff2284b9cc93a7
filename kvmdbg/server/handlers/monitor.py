"""gdb's ``monitor``: a few commands of our own, and QEMU's monitor."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import MonitorError
from kvmdbg.rsp.server.commands.monitor import Monitor
from kvmdbg.server.client import Client, Outcome, Printed
from kvmdbg.server.handlers.permitted import check_hmp, check_qmp, name_of
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec

HELP = """\
monitor help                    this text
monitor help COMMAND            QEMU's help on one of its commands
monitor clients                 who is there, and who drives
monitor drive                   drive the VM from here; whoever did so looks from then on
monitor breakpoints             all in the VM: int3, debug register or why not armed, and whose
monitor info system-registers   control, segment base, table and debug registers of gdb's thread
monitor watch ADDR LEN [r|w|rw] stop at accesses to LEN bytes, to writes unless told otherwise
monitor watch … if EXPR         only where EXPR holds: C's operators, 64 bits unsigned, with $rax,
                                *ADDR, u8(ADDR) to u64(ADDR), and value, what is watched
monitor unwatch ADDR            take out what monitor watch put there
monitor system_reset            reset the machine; it stays stopped
monitor qmp COMMAND [JSON]      a QMP command with its arguments, and its result
monitor qmp {JSON}              the same as one object with execute and arguments
monitor COMMAND                 any other is QEMU's own, e.g. monitor info mtree; it is about
                                the vCPU of gdb's thread where it is about one; who looks has
                                those that change nothing, as info, x and xp, and qmp query-…
"""

NO_BREAKPOINTS = (
    "there are none: gdb takes its own out while the VM is stopped, unless told to "
    "set breakpoint always-inserted on\n"
)

_FLUSH = "maintenance flush register-cache shows where it is"

_CR4_LA57 = 1 << 12

_WATCHES = {"r": BreakpointKind.READ, "w": BreakpointKind.WRITE, "rw": BreakpointKind.ACCESS}


async def run(client: Client, command: Monitor) -> Outcome:
    """``qRcmd``"""
    line = command.line.strip()
    name, _, rest = line.partition(" ")
    if line == "":
        name = "help"
    if name == "help" and rest.strip() in _OWN:
        return Printed(_help_on(rest.strip()))
    if name in _OWN and not (name == "help" and rest):
        if name in _ALONE and rest:
            raise MonitorError(
                f"monitor {name} stands alone, and is not done with {rest.strip()!r}"
            )
        return Printed(await _OWN[name](client, rest.strip()))
    if line.split()[:2] == ["info", "system-registers"]:
        if len(line.split()) > 2:
            raise MonitorError("monitor info system-registers stands alone")
        return Printed(await _system_registers(client))
    return Printed(await _hmp(client, line, client.access))


async def _hmp(client: Client, line: str, vcpu: VcpuIndex | None) -> str:
    """What QEMU's human monitor says, about ``vcpu`` where it is about one."""
    check_hmp(client, line)
    if name_of(line) == "system_reset":
        return await _reset(client, "")
    if line.split() == ["info", "mem"]:
        await _check_paging(client)
    return await client.vm.monitor.hmp(line, vcpu)


async def _help(client: Client, rest: str) -> str:
    return HELP


def _help_on(command: str) -> str:
    """What the help says of one of our own commands."""
    chosen, lines = False, []
    for line in HELP.splitlines(keepends=True):
        if not line.startswith(" "):
            chosen = line.split()[1] == command
        if chosen:
            lines.append(line)
    return "".join(lines)


async def _clients(client: Client, rest: str) -> str:
    clients = client.vm.clients
    lines = []
    for name, pid in client.host.clients.items():
        looks = "looks" if name in clients.holders else ""
        role = "drives" if name == clients.driver else looks
        you = "(you)" if name == client.id else ""
        lines.append(f"{name:10} {f'pid {pid}' if pid else '':12} {role:6} {you}".rstrip())
    return "".join(f"{line}\n" for line in lines)


async def _drive(client: Client, rest: str) -> str:
    vm = client.vm
    if vm.clients.driver == client.id:
        return f"{client.id} drives the VM already\n"
    vm.clients.take_over(client.id)
    vm.notice(f"{client.id} drives the VM now")
    stop = await vm.pause()
    has_moved = stop is not client.seen
    client.shown(stop)
    if has_moved:
        return f"it has moved since you saw it: {_FLUSH}\n"
    return ""


async def _breakpoints(client: Client, rest: str) -> str:
    lines = []
    for placement, clients in await client.vm.describe_breakpoints():
        hits = "" if placement.hits is None else f", hit {placement.hits} times"
        note = f" ({placement.note})" if placement.note else ""
        conditions = client.vm.breakpoints.conditions(placement.spec)
        whose = ", ".join(
            f"{name} if {conditions[name].text}" if name in conditions else name
            for name in sorted(clients)
        )
        lines.append(f"{placement.spec}: {placement.how}{hits}{note}; {whose}\n")
    return "".join(lines) or NO_BREAKPOINTS


async def _system_registers(client: Client) -> str:
    """What gdb's ``info registers system`` shows, where gdb asks the description for groups."""
    lines = []
    for number, register in enumerate(client.vm.arch.registers):
        if not register.is_system:
            continue
        value = await client.vm.read_register(client.access, number)
        shown = "<unavailable>" if value is None else f"{int.from_bytes(value, 'little'):#x}"
        lines.append(f"{register.name:16} {shown}\n")
    return "".join(lines)


async def _watch(client: Client, rest: str) -> str:
    place, has_condition, condition = f" {rest} ".partition(" if ")
    words = place.split()
    if len(words) not in (2, 3) or words[2:] not in ([], *([kind] for kind in _WATCHES)):
        raise MonitorError("say monitor watch ADDR LEN, r, w or rw if it is not w, and if EXPR")
    address, length = _number(words[0]), _number(words[1])
    kind = _WATCHES[words[2] if words[2:] else "w"]
    spec = BreakpointSpec(kind, Gva(address), length)
    await client.vm.insert_breakpoint(
        client.monitor_id, spec, condition.strip() if has_condition else None
    )
    return f"{spec}\n"


async def _unwatch(client: Client, rest: str) -> str:
    if not rest:
        raise MonitorError("say monitor unwatch ADDR, as in monitor watch")
    address = _number(rest)
    found = [s for s in client.vm.breakpoints.held_by(client.monitor_id) if s.address == address]
    if not found:
        raise MonitorError(f"monitor watch put nothing at {address:#x}")
    for spec in found:
        await client.vm.remove_breakpoint(client.monitor_id, spec)
    return ""


async def _reset(client: Client, rest: str) -> str:
    client.require_drive()
    await client.vm.reset()
    return f"the VM was reset: {_FLUSH}\n"


def _number(word: str) -> int:
    try:
        return int(word, 0)
    except ValueError:
        raise MonitorError(
            f"{word!r} is no number: write 0x… or decimal, or let gdb look a symbol up: "
            f'eval "monitor watch %p 8", &{word}'
        ) from None


async def _check_paging(client: Client) -> None:
    """QEMU (7.2 for one) walks an x86 guest's 5-level tables for minutes, deaf to all else."""
    number = client.vm.arch.numbers.get("cr4")
    value = None
    if number is not None:
        value = await client.vm.read_register(client.access, number)
    if value is not None and int.from_bytes(value, "little") & _CR4_LA57:
        raise MonitorError(
            "monitor info mem is refused: with 5-level paging QEMU takes minutes and does nothing "
            "else meanwhile; use monitor info tlb, or boot the guest with no5lvl"
        )


async def _qmp(client: Client, rest: str) -> str:
    if not rest:
        raise MonitorError("say monitor qmp COMMAND, and its arguments as JSON")
    name, arguments = _one_object(rest) if rest.startswith("{") else _name_and_object(rest)
    line = (arguments or {}).get("command-line")
    if name == "human-monitor-command" and isinstance(line, str):
        about = (arguments or {}).get("cpu-index")
        vcpu = VcpuIndex(about) if isinstance(about, int) else None
        return json.dumps(await _hmp(client, line, vcpu)) + "\n"
    check_qmp(client, name)
    if name == "system_reset":
        await _reset(client, "")
        return "{}\n"
    return json.dumps(await client.vm.monitor.qmp(name, arguments), indent=2) + "\n"


def _one_object(text: str) -> tuple[str, dict[str, Any] | None]:
    command = _json(text, "the command is")
    name, arguments = command.get("execute"), command.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        raise MonitorError('a QMP command is {"execute": NAME} or has "arguments": {…} too')
    return name, arguments


def _name_and_object(text: str) -> tuple[str, dict[str, Any] | None]:
    name, _, arguments = text.partition(" ")
    return name, _json(arguments, f"the arguments of {name} are") if arguments.strip() else None


def _json(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MonitorError(f"{what} no JSON: {error}") from error
    if not isinstance(value, dict):
        raise MonitorError(f"{what} no JSON object")
    return value


_OWN: dict[str, Callable[[Client, str], Awaitable[str]]] = {
    "help": _help,
    "clients": _clients,
    "drive": _drive,
    "breakpoints": _breakpoints,
    "watch": _watch,
    "unwatch": _unwatch,
    "system_reset": _reset,
    "qmp": _qmp,
}
"""Commands of our own; those of QEMU's that have such a name are not reached."""

_ALONE = {"clients", "drive", "breakpoints", "system_reset"}
"""Those that take nothing."""
