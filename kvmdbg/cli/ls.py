"""``kvmdbg ls``: running VMs, and definitions that could be booted."""

from __future__ import annotations

import os
import sys

from kvmdbg.cli.show import say
from kvmdbg.errors import DefinitionError
from kvmdbg.machine.define import Definition, load_definition
from kvmdbg.machine.find import DefinedVm, RunningVm, list_definitions, list_vms
from kvmdbg.machine.runtime import RuntimeDir


def run() -> int:
    """Print both tables, and below them what is wrong with a definition."""
    runtime = RuntimeDir.open()
    running = [_running_row(runtime, vm) for vm in list_vms(runtime)]
    defined = [(vm, _definition(vm)) for vm in list_definitions()]
    if running:
        _table("running", ("NAME", "PID", "ARCH", "ACCEL", "DEBUGGED", "MONITOR"), running)
    else:
        print("no VM is running")
    _table("defined", ("NAME", "ARCH", "FILE"), [_defined_row(*each) for each in defined])
    for _, definition in defined:
        if isinstance(definition, DefinitionError):
            say(str(definition))
    return 0


def _definition(vm: DefinedVm) -> Definition | DefinitionError:
    try:
        return load_definition(vm.path)
    except DefinitionError as error:
        return error


def _defined_row(vm: DefinedVm, definition: Definition | DefinitionError) -> tuple[str, ...]:
    arch = definition.arch if isinstance(definition, Definition) else "broken"
    return vm.name, arch, str(vm.path)


def _running_row(runtime: RuntimeDir, vm: RunningVm) -> tuple[str, ...]:
    return (
        vm.name,
        str(vm.pid),
        vm.arch,
        vm.accel,
        _debugged(runtime, vm),
        _monitor(vm),
    )


def _debugged(runtime: RuntimeDir, vm: RunningVm) -> str:
    if vm.uid != os.getuid():
        return f"no: it is uid {vm.uid}'s"
    return "yes" if runtime.is_owned(vm.process) else "no"


def _monitor(vm: RunningVm) -> str:
    """The monitor that others may use: for our VMs the one that is left free."""
    if vm.info is not None and vm.info.monitor is not None:
        return vm.info.monitor
    free = [monitor.path for monitor in vm.monitors if not monitor.busy]
    return (free or ["none free"])[0].replace("\0", "@")


def _table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Rich on a terminal; plain columns, which scripts can read, otherwise."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*headings, title=title, title_justify="left", box=None)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    print(f"{title}:")
    for row in [headings, *rows]:
        print(
            "  "
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
