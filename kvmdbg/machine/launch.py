"""Starting QEMU for a definition, and coming back to one that we started.

QEMU runs in a session of its own and outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from kvmdbg.errors import AcceleratorError, LaunchError, MonitorError, OwnerError
from kvmdbg.images import ImageStore, load_recipe
from kvmdbg.machine.accel import (
    AGENT,
    ASKED_FOR,
    STUB,
    Choice,
    choose_accelerator,
    choose_engine,
    recordable,
    without_host_cpu,
)
from kvmdbg.machine.claim import Claim
from kvmdbg.machine.define import BootFiles, Definition
from kvmdbg.machine.engines import (
    OpenEngine,
    agent_engine,
    connect_agent,
    instead_of_agent,
    stub_engine,
    with_fallback,
)
from kvmdbg.machine.exitwatch import ExitWatch, adopt
from kvmdbg.machine.machine import Machine, open_machine
from kvmdbg.machine.preload import NO_PRELOAD, Preload, preload, preload_trouble
from kvmdbg.machine.processes import ProcessId
from kvmdbg.machine.qemu import arguments, find_qemu, kernel_command_line, qemu_version
from kvmdbg.machine.recording import (
    discard,
    machine_facts,
    new_recording,
    open_recording,
    replay_arguments,
)
from kvmdbg.machine.runtime import RuntimeDir, VmFolder, VmInfo
from kvmdbg.progress import Progress
from kvmdbg.qmp import QmpConnection

START_TIMEOUT = 30.0
"""Seconds from the start of QEMU until its monitor answers."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_NAMED = re.compile(r"^\S*qemu-system-\S+: ")

# What QEMU says when it gives up → what to do.
_HINTS = (
    ("cannot set up guest memory", "give the VM less memory (key memory)"),
    ("Cannot allocate memory", "give the VM less memory (key memory)"),
    ("invalid option", "check extra_args"),
    ("is not a valid device model name", "check extra_args"),
    ("linux kernel too old", "check that the key kernel names a kernel"),
    ("invalid input log file version", "it is no recording, or one of another QEMU"),
    ("error reading the replay data", "the recording is empty or damaged: record the run again"),
    ('Failed to get "', "another program, perhaps another VM, is using that disk"),
)


@dataclass(frozen=True)
class LaunchOptions:
    """What the user chose for one run. ``name``: the definition's where None."""

    name: str | None = None
    accel: str = "auto"
    engine: str = "auto"
    keep: bool = False
    record: Path | None = None
    replay: Path | None = None

    @property
    def wants_recording(self) -> bool:
        """True if the run is to be recorded, or replayed."""
        return self.record is not None or self.replay is not None


async def launch_vm(
    runtime: RuntimeDir, definition: Definition, options: LaunchOptions, progress: Progress
) -> Machine:
    """Boot a definition: build its image if need be, start QEMU, open it frozen.

    The caller holds ``runtime.name_lock(name)``. Raises LaunchError, ImageError,
    AcceleratorError, OwnerError where one of that name runs already; nothing is left behind then.
    """
    name = options.name or definition.name
    if not _NAME.fullmatch(name):
        raise LaunchError(
            f"{name!r} cannot name a VM: use letters, digits, dot, dash and underscore, 64 at most"
        )
    for _, other in runtime.vms():
        if other.name == name:
            raise OwnerError(f"a VM named {name} runs already (pid {other.pid}): use --name")
    wanted = options.accel if options.accel != "auto" else definition.accel
    if options.wants_recording:
        wanted = _recordable(wanted)
    accel = await asyncio.to_thread(choose_accelerator, wanted, definition.arch)
    engine = choose_engine(options.engine, accel.name)
    engine, engine_notices = _checked(engine, options)
    notices = [] if accel.reason == ASKED_FOR else [f"accelerator {accel.name}: {accel.reason}"]
    extra = definition.extra_args
    if accel.name == "tcg":
        extra, had_host_cpu = without_host_cpu(extra)
        if had_host_cpu:
            notices.append(
                "-cpu host became -cpu max: TCG emulates every feature that it knows, not this "
                "host's"
            )
    notices += engine_notices
    if definition.vmlinux and definition.places_itself:
        notices.append(
            "the kernel may place itself at random, and then addresses are not those of its "
            "vmlinux: kaslr = false in the definition adds nokaslr"
        )
    program = find_qemu(definition)
    version = await qemu_version(program)
    files, workload = await asyncio.to_thread(_build, definition, progress)
    history = _history(definition, files, options, version)
    notices += history.notices
    processor = recordable(accel) if options.wants_recording else accel.processor

    folder = runtime.new_vm(name)
    argv = [
        program,
        *arguments(definition, files, folder, name, processor, extra, history.arguments),
    ]
    process: ExitWatch | None = None
    claim: Claim | None = None
    try:
        progress.step(f"starting QEMU for {name}")
        with _agent_preload(folder, engine.name) as inherited:
            process = ExitWatch(_spawn(argv, folder, definition.folder, inherited))
        identity = await _identity(process, folder)
        claim = await Claim.take(runtime, identity)  # before vm.json tells others of the VM
        info = VmInfo(
            name=name,
            process=identity,
            arch=definition.arch,
            accel=accel.name,
            accel_reason=accel.reason,
            engine=engine.name,
            cpus=definition.cpus,
            booted=True,
            on_kill=definition.debug.on_kill,
            keep=options.keep,
            orphan_timeout=definition.debug.orphan_timeout,
            definition=str(definition.path),
            vmlinux=str(files.vmlinux) if files.vmlinux else None,
            workload=str(workload) if workload else None,
            qemu_version=".".join(map(str, version)),
            monitor=str(folder.monitor),
            console=str(folder.console),
            console_log=str(folder.console_log),
            qemu_log=str(folder.qemu_log),
            argv=tuple(argv),
            recording=str(options.record) if options.record else None,
            recorded_machine=history.machine,
            replay_end=history.end,
        )
        folder.write(info)
        connection = await _first_connection(process, folder)
        open_engine = _opener(folder, engine.name, may_fall_back=options.engine == "auto")
        machine = await open_machine(
            info, claim, open_engine, process, connection, notices=tuple(notices)
        )
        folder.write(machine.info)
        return machine
    except BaseException:
        if process is not None:
            process.kill()
            await process.wait()
            if options.record is not None:
                discard(options.record)
        folder.remove()
        if claim is not None:
            claim.release()
        raise


def _recordable(accel: str) -> str:
    """The accelerator for a run that is recorded or replayed. Raises AcceleratorError."""
    if accel == "kvm":
        raise AcceleratorError(
            "under KVM no run can be recorded or replayed: use --accel tcg with --record and "
            "--replay"
        )
    return "tcg"


@dataclass(frozen=True)
class _History:
    """How the run has to do with a recording; nothing, as it stands."""

    arguments: Sequence[str] = ()
    machine: dict[str, str] = field(default_factory=dict)
    end: int | None = None
    notices: tuple[str, ...] = ()


def _history(
    definition: Definition, files: BootFiles, options: LaunchOptions, qemu: tuple[int, ...]
) -> _History:
    """Raises LaunchError."""
    if not options.wants_recording:
        return _History()
    machine = machine_facts(definition, files, kernel_command_line(definition), qemu)
    if options.record is not None:
        recorded = f"the run is recorded: {options.record} will be there when the VM has ended"
        return _History(new_recording(definition, options.record), machine, notices=(recorded,))
    assert options.replay is not None
    contents = open_recording(definition, options.replay, machine)
    replayed = f"the run is a replay of {options.replay}: gdb can go back in it"
    arguments = replay_arguments(definition, options.replay)
    return _History(arguments, {}, contents.instructions, (replayed,))


async def _identity(process: ExitWatch, folder: VmFolder) -> ProcessId:
    identity = ProcessId.of(process.pid)
    if identity is None:
        raise await _died(process, folder)
    return identity


def _build(definition: Definition, progress: Progress) -> tuple[BootFiles, Path | None]:
    """The files to boot, and the image's user program if it has one; takes minutes at times."""
    if definition.recipe is None:
        return definition.files(None), None
    image = ImageStore().ensure(load_recipe(definition.recipe), progress)
    workload = image.artefact("workload") if "workload" in image.manifest.artefacts else None
    return definition.files(image), workload


def _checked(engine: Choice, options: LaunchOptions) -> tuple[Choice, list[str]]:
    """The engine, or what takes its place, and why. Raises AcceleratorError."""
    trouble = preload_trouble() if engine.name == AGENT else None
    if trouble is None:
        return engine, []
    if options.engine == "agent":
        raise AcceleratorError(f"--engine agent cannot be had: {trouble}")
    return Choice(STUB, trouble), [instead_of_agent(trouble)]


def _agent_preload(folder: VmFolder, engine: str) -> AbstractContextManager[Preload]:
    return preload(folder.agent) if engine == AGENT else contextlib.nullcontext(NO_PRELOAD)


def _opener(folder: VmFolder, engine: str, *, may_fall_back: bool) -> OpenEngine:
    """For a VM that we launched, with the agent in it or without."""
    stub = stub_engine(folder.stub)
    if engine != AGENT:
        return stub
    agent = agent_engine(lambda monitor: connect_agent(folder.agent), str(folder.qmp))
    return with_fallback(agent, stub) if may_fall_back else agent


def _spawn(argv: list[str], folder: VmFolder, cwd: Path, inherited: Preload) -> int:
    """Start QEMU with sockets for us alone, in a session that no terminal's Ctrl-C reaches.

    Its pid. Raises LaunchError.
    """
    folder.qemu_log.touch(mode=0o600)
    try:
        with folder.qemu_log.open("ab") as log:
            child = subprocess.Popen(
                argv,
                cwd=cwd,  # paths in extra_args are relative to the definition, as all are
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                env={**os.environ, **inherited.environment},
                pass_fds=inherited.descriptors,
            )
    except OSError as error:
        raise LaunchError(f"cannot run {argv[0]}: {error.strerror}") from error
    adopt(child)
    return child.pid


async def _first_connection(process: ExitWatch, folder: VmFolder) -> QmpConnection:
    """The monitor, once QEMU has made it. Raises LaunchError."""
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                if process.ended:
                    raise await _died(process, folder)
                # The socket is there before anybody listens, and QEMU may die before it greets.
                with contextlib.suppress(MonitorError):
                    if folder.qmp.exists():
                        return await QmpConnection.connect(folder.qmp, timeout=START_TIMEOUT)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise LaunchError(
            f"QEMU started, but its monitor did not answer within {START_TIMEOUT:g} s: "
            f"{_last_words(folder) or 'it said nothing'}"
        ) from None


async def _died(process: ExitWatch, folder: VmFolder) -> LaunchError:
    """The error for a QEMU that ends at its start, in its own words."""
    await process.wait()
    words = _last_words(folder)
    if not words:
        return LaunchError(f"QEMU ended at its start with status {process.status}, without a word")
    hints = [hint for text, hint in _HINTS if text in words]
    return LaunchError(f"QEMU ended at its start: {words}" + "".join(f": {h}" for h in hints[:1]))


def _last_words(folder: VmFolder) -> str:
    """The last line that QEMU printed, without its own name: with it, it is no mere advice."""
    try:
        lines = folder.qemu_log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip() and ": warning: " not in line]
    named = [line for line in said if _NAMED.match(line)]
    return _NAMED.sub("", (named or said)[-1]) if said else ""


async def take_over(runtime: RuntimeDir, folder: VmFolder) -> Machine:
    """Open a VM that kvmdbg launched and that has no owner any more.

    Raises OwnerError when it has ended meanwhile, or another process was quicker.
    """
    info = folder.read()
    if info is None or not info.process.alive:
        raise OwnerError(f"the VM of {folder.path} has just ended: try again")
    claim = await Claim.take(runtime, info.process)
    process: ExitWatch | None = None
    try:
        process = ExitWatch(info.pid)
        connection = await QmpConnection.connect(folder.qmp)
        open_engine = _opener(folder, info.engine, may_fall_back=True)
        return await open_machine(info, claim, open_engine, process, connection)
    except BaseException:
        if process is not None:
            process.close()
        claim.release()
        raise
