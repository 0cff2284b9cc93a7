"""The QEMU program: found, its version checked, and its argument list for a definition."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from kvmdbg.errors import LaunchError
from kvmdbg.machine.boards import BOARDS
from kvmdbg.machine.define import BootFiles, Definition
from kvmdbg.machine.runtime import VmFolder

MINIMUM_VERSION = (7, 2)

_VERSION_TIMEOUT = 30.0

_versions: dict[tuple[str, int], tuple[int, int, int]] = {}  # by path and mtime of the program


def find_qemu(definition: Definition) -> str:
    """Path of the QEMU to run. Raises LaunchError when there is none."""
    name = definition.qemu or f"qemu-system-{definition.arch}"
    if "/" in name:
        name = str(definition.folder / name)
    found = shutil.which(name)
    if found is None and definition.qemu:
        raise LaunchError(
            f"cannot run {name}, which the key qemu names for {definition.name}: there is no such "
            "program, or it may not be executed"
        )
    if found is None:
        raise LaunchError(
            f"QEMU is missing: {name} is not on the PATH: install it "
            f"(apt-get install {BOARDS[definition.arch].package})"
        )
    return found


async def qemu_version(program: str) -> tuple[int, int, int]:
    """Version of a QEMU program. Raises LaunchError when it is none or too old."""
    key = (program, os.stat(program).st_mtime_ns)
    if key not in _versions:
        _versions[key] = parse_version(program, await _ask_version(program))
    version = _versions[key]
    if version < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        raise LaunchError(
            f"{program} is QEMU {'.'.join(map(str, version))}, which is too old: "
            f"kvmdbg needs {needed} or newer"
        )
    return version


async def _ask_version(program: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise LaunchError(f"cannot run {program}: {error.strerror}") from error
    try:
        async with asyncio.timeout(_VERSION_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise LaunchError(
            f"{program} --version did not answer within {_VERSION_TIMEOUT:g} s: is it QEMU?"
        ) from None
    return output.decode(errors="replace")


def parse_version(program: str, text: str) -> tuple[int, int, int]:
    """The version in the output of ``--version``. Raises LaunchError."""
    match = re.search(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        said = text.strip().splitlines()
        raise LaunchError(
            f"{program} does not look like QEMU: to --version it said "
            f"{said[-1] if said else 'nothing'!r}"
        )
    return int(match[1]), int(match[2]), int(match[3] or 0)


def arguments(
    definition: Definition,
    files: BootFiles,
    folder: VmFolder,
    name: str,
    processor: Sequence[str],
    extra: Sequence[str],
    recording: Sequence[str] = (),
) -> list[str]:
    """QEMU's arguments, without the program; ``processor`` chooses accelerator and CPU model,
    ``recording`` records or replays the run, ``extra`` stands last and so wins.

    The VM is frozen at its first instruction. A shutdown or panic pauses it, so that a debugger
    can look; two monitors are there, ours and one for others.
    """
    board = BOARDS[definition.arch]
    return [
        *("-name", f"guest={name},debug-threads=on"),
        *("-no-user-config", "-nodefaults", "-display", "none"),
        *("-machine", board.machine, *processor),
        *("-smp", str(definition.cpus), "-m", definition.memory),
        "-S",
        *("-action", "reboot=reset,shutdown=pause,panic=pause"),
        *_monitor("control", folder.qmp),
        *_monitor("free", folder.monitor),
        *("-gdb", f"unix:{_quote(folder.stub)},server=on,wait=off"),
        *_console(folder),
        *(word for device in board.devices for word in ("-device", device)),
        *_boot(definition, files),
        *_disk(files.disk),
        *recording,
        *extra,
    ]


def _monitor(name: str, socket: Path) -> list[str]:
    chardev = f"socket,id={name},path={_quote(socket)},server=on,wait=off"
    return ["-chardev", chardev, "-mon", f"chardev={name},mode=control"]


def _console(folder: VmFolder) -> list[str]:
    return [
        "-chardev",
        f"socket,id=console,path={_quote(folder.console)},server=on,wait=off,"
        f"logfile={_quote(folder.console_log)},logappend=off",
        "-serial",
        "chardev:console",
    ]


def _boot(definition: Definition, files: BootFiles) -> list[str]:
    if files.kernel is None:
        return []
    arguments = ["-kernel", str(files.kernel)]
    if files.initrd is not None:
        arguments += ["-initrd", str(files.initrd)]
    return [*arguments, "-append", kernel_command_line(definition)]


def kernel_command_line(definition: Definition) -> str:
    """``append``, completed: no KASLR where the definition says so, and the serial console."""
    words = definition.append.split()
    if not definition.kaslr and not definition.says_nokaslr:
        words.append("nokaslr")
    if not any(word.startswith("console=") for word in words):
        words.append(f"console={BOARDS[definition.arch].console}")
    return " ".join(words)


def _disk(path: Path | None) -> list[str]:
    if path is None:
        return []
    # By name, never by content: a guest could write another format's header into a raw disk.
    kind = "qcow2" if path.suffix == ".qcow2" else "raw"
    return ["-drive", f"file={_quote(path)},format={kind},if=virtio"]


def _quote(path: Path) -> str:
    """For QEMU's option lists, where a comma separates and a doubled one is a comma."""
    return str(path).replace(",", ",,")
