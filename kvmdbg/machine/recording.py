"""Recorded runs: FILE is QEMU's log of whatever came from outside of the machine, FILE.json says of
which machine, and where the log ends.

While a run is recorded, QEMU writes FILE.part. The owner makes FILE of it when the VM has ended:
a FILE that exists is whole.

Source: QEMU's ``docs/system/replay.rst``, and ``replay/replay.c`` for the log's header.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvmdbg.errors import LaunchError, MonitorError, VmGone
from kvmdbg.machine.boards import BOARDS
from kvmdbg.machine.define import BootFiles, Definition
from kvmdbg.target.capabilities import MonitorQuery
from kvmdbg.target.runstate import PERMITS, RunEvent, VmRunState

log = logging.getLogger(__name__)

_HEADER = 4  # bytes; zero until QEMU has closed the log
_MOMENT, _PATIENCE = 0.01, 100  # seconds, and how many times that


class Contents(msgspec.Struct, frozen=True):
    """FILE.json. ``machine``: what the log means nothing without, by name; ``instructions``: how
    many can be replayed."""

    machine: dict[str, str]
    instructions: int


def machine_facts(
    definition: Definition, files: BootFiles, command_line: str, qemu: tuple[int, ...]
) -> dict[str, str]:
    """What decides how a machine runs, by name; two runs that differ in one are not the same."""
    facts = {
        "QEMU": ".".join(map(str, qemu)),
        "architecture": definition.arch,
        "memory": definition.memory,
        "cpus": str(definition.cpus),
        "extra_args": " ".join(definition.extra_args),
        "kernel command line": command_line,
    }
    for name in ("kernel", "initrd"):
        path: Path | None = getattr(files, name)
        facts[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path else "none"
    return facts


def new_recording(definition: Definition, file: Path) -> list[str]:
    """QEMU's arguments that record to ``file``. Raises LaunchError."""
    if file.exists():
        raise LaunchError(f"{file} is there already: remove it, or record to another file")
    if not os.access(file.parent, os.W_OK):
        raise LaunchError(f"{file} cannot be written: there is no folder {file.parent} to write in")
    return _arguments(definition, "record", _part(file))


def open_recording(definition: Definition, file: Path, machine: dict[str, str]) -> Contents:
    """What is known of the recording ``file``, which has to be of that machine.

    Raises LaunchError.
    """
    _check(definition)
    try:
        contents = msgspec.json.decode(_json(file).read_bytes(), type=Contents)
        file.stat()
    except OSError as error:
        cut_off = f": {_part(file)} is one whose kvmdbg or QEMU was killed"
        part = cut_off if _part(file).exists() else ""
        raise LaunchError(
            f"{error.filename} cannot be read ({error.strerror}), and a replay needs {file} and "
            f"{_json(file).name} beside it{part}"
        ) from error
    except msgspec.DecodeError as error:
        raise LaunchError(f"{_json(file)} is not what --record writes: {error}") from error
    for name, value in machine.items():
        if (then := contents.machine.get(name)) != value:
            raise LaunchError(
                f"{file} was recorded on another machine, whose {name} was {then} and is {value} "
                "now: a replay has to be the same in all"
            )
    return contents


def replay_arguments(definition: Definition, file: Path) -> list[str]:
    """QEMU's arguments that replay ``file``."""
    # A place for snapshots that the guest does not see: a temporary file, gone with QEMU.
    history = "driver=null-co,size=4k,read-zeroes=on,if=none,id=kvmdbg-history,snapshot=on"
    return [*_arguments(definition, "replay", file), "-drive", history]


def _arguments(definition: Definition, mode: str, file: Path) -> list[str]:
    _check(definition)
    log_file = str(file).replace(",", ",,")
    return [
        *("-icount", f"shift=auto,rr={mode},rrfile={log_file}"),
        *BOARDS[definition.arch].recordable,
    ]


def discard(file: Path) -> None:
    """A recording came to nothing."""
    _part(file).unlink(missing_ok=True)


def _check(definition: Definition) -> None:
    """Raise LaunchError for a machine that cannot be recorded."""
    if definition.disk is not None:
        raise LaunchError(
            "a VM with a disk cannot be recorded: its definition has the key disk; boot from an "
            "initrd"
        )
    if definition.cpus > 1:
        raise LaunchError(
            f"a VM with {definition.cpus} vCPUs cannot be recorded: QEMU records one; "
            "--set cpus=1 takes the others away"
        )


def _part(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def _json(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


@dataclass
class Recording:
    """A recording that is being made."""

    file: Path
    machine: dict[str, str]
    monitor: MonitorQuery
    instructions: int | None = None

    async def note_end(self) -> None:
        """The VM is about to be ended: the recording will be good until here, or until right before
        a guest's panic or shutdown, which a QEMU that replays it cannot be led back from."""
        try:
            executed = await self._executed()
            state = (await self.monitor.qmp("query-status"))["status"]
            beyond = _goes_on(state) and await self._run_beyond(executed)
        except (MonitorError, VmGone) as error:
            log.warning("the end of the recording %s is not known: %s", self.file, error)
            return
        self.instructions = executed if beyond else executed - 1

    async def _executed(self) -> int:
        return int((await self.monitor.qmp("query-replay"))["icount"])

    async def _run_beyond(self, executed: int) -> bool:
        """Let the VM run on for a moment: QEMU ends where its log does, so the last stop that a
        replay is to come to must not be there. False if it does not, at a breakpoint for one."""
        await self.monitor.qmp("cont")
        for _ in range(_PATIENCE):
            if await self._executed() > executed:
                return True
            await asyncio.sleep(_MOMENT)
        return False

    def on_event(self, event: RunEvent) -> None:
        """For :meth:`kvmdbg.target.capabilities.RunControl.subscribe`."""
        if event is RunEvent.GONE:
            self._complete()

    def _complete(self) -> None:
        """The VM has ended: make the recording whole, where it is."""
        part = _part(self.file)
        try:
            with part.open("rb") as stream:
                closed = any(stream.read(_HEADER))
            if not closed or not self.instructions:
                log.warning("%s stays unfinished: QEMU did not end by kvmdbg", part)
                return
            _write(_json(self.file), Contents(self.machine, self.instructions))
            os.replace(part, self.file)
        except OSError as error:
            log.warning("the recording %s cannot be finished: %s", self.file, error)


def _goes_on(state: str) -> bool:
    return any(state == known.value and PERMITS[known].resumable for known in VmRunState)


def _write(path: Path, contents: Contents) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(contents), indent=2))
    os.replace(part, path)
