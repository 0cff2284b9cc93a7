"""One running L1: booted or restored, asked to run commands, ended with its starter."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from kvmdbg.images.tools import find_tool
from tests.lab.channel import CHUNK, Decoder, Kind, encode
from tests.lab.errors import LabError
from tests.lab.host import HostTools
from tests.lab.machines import CPUS, MEMORY_MIB, L1Machine
from tests.lab.qmp import Monitor
from tests.lab.root import INITRAMFS, KERNEL, ROOT

STATE = "state"

_BOOT_TIMEOUT = 300.0
_RESTORE_TIMEOUT = 120.0
_POLL = 0.005
_DYING = ("BUG:", "Oops", "Kernel panic", "Out of memory", "RIP: 0010:")
_LOG_LIMIT = 1 << 20  # bytes


@dataclass(frozen=True)
class Request:
    """A command for an L1, run by bash in the tree's folder; an empty one is a shell."""

    command: str
    tree: bytes = b""
    """A tar that takes the place of the tree there; empty: the one there stays."""
    file: str = ""
    """A file to bring back, relative to the tree."""
    terminal: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def frames(self) -> Iterator[bytes]:
        """As it goes over the channel."""
        header = {
            "command": self.command,
            "file": self.file,
            "terminal": self.terminal,
            "environment": dict(self.environment),
            "fresh": bool(self.tree),
            "time": time.time(),
        }
        yield encode(Kind.REQUEST, json.dumps(header).encode())
        for start in range(0, len(self.tree), CHUNK):
            yield encode(Kind.TREE, self.tree[start : start + CHUNK])
        yield encode(Kind.TREE)


@dataclass(frozen=True)
class Finished:
    """How a command ended: status as the shell counts it, and what it said."""

    status: int
    out: str
    err: str
    file: bytes | None


class L1:
    """A running L1; :func:`start_l1` makes one."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: socket.socket, log: IO[bytes]
    ) -> None:
        self.channel = channel
        self.process = process
        self._log = log
        self._decoder = Decoder()
        self._frames: list[tuple[Kind, bytes]] = []

    def receive(self, timeout: float | None = None) -> tuple[Kind, bytes]:
        """The next frame. Raises LabError when the L1 has ended, or is silent, which ends it."""
        while not self._frames:
            self._frames += self.receive_some(timeout)
        return self._frames.pop(0)

    def receive_some(self, timeout: float | None = None) -> list[tuple[Kind, bytes]]:
        """The frames, none perhaps, that the next bytes complete. Raises as :meth:`receive`."""
        self.channel.settimeout(timeout)
        try:
            data = self.channel.recv(CHUNK)
        except TimeoutError:
            self.process.kill()  # whoever asks next would get the answers to this
            raise LabError(
                f"L1 was silent for {timeout:g} s, and was ended; "
                f"the end of its console: {self.last_words()}"
            ) from None
        except ConnectionResetError:  # it ended before it had read everything
            data = b""
        if not data:
            raise LabError(f"L1 has ended; the end of its console: {self.last_words()}")
        return list(self._decoder.feed(data))

    def send(self, frame: bytes) -> None:
        """Send a frame. Raises LabError when the L1 has ended."""
        self.channel.settimeout(None)
        try:
            self.channel.sendall(frame)
        except OSError as error:
            raise LabError(f"L1 has ended; the end of its console: {self.last_words()}") from error

    def request(self, request: Request) -> None:
        """Send a request."""
        for frame in request.frames():
            self.send(frame)

    def follow(
        self, show: Callable[[Kind, bytes], None], timeout: float | None = None
    ) -> tuple[int, bytes | None]:
        """Hand on what the command says, until it ends: its status, and the file if it is there.

        *timeout*: seconds without a word. Raises LabError.
        """
        content: bytes | None = None
        while True:
            kind, payload = self.receive(timeout)
            if kind is Kind.EXIT:
                return int(payload), content
            if kind is Kind.FILE:
                content = (content or b"") + payload
            else:
                show(kind, payload)

    def run(
        self,
        command: str,
        *,
        tree: bytes = b"",
        file: str = "",
        environment: Mapping[str, str] | None = None,
        timeout: float = 300.0,
    ) -> Finished:
        """Run a command to its end and keep what it says. Raises LabError."""
        said = {Kind.OUTPUT: bytearray(), Kind.ERRORS: bytearray()}
        self.request(Request(command, tree, file, environment=environment or {}))
        self.send(encode(Kind.INPUT))
        status, content = self.follow(lambda kind, data: said[kind].extend(data), timeout)
        out, err = (said[kind].decode(errors="replace") for kind in (Kind.OUTPUT, Kind.ERRORS))
        return Finished(status, out, err, content)

    def last_words(self) -> str:
        """The last lines of its console, and of the outer QEMU, and what its kernel died of."""
        said = os.pread(self._log.fileno(), _LOG_LIMIT, 0).decode(errors="replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        death = [line for line in lines[:-3] if any(word in line for word in _DYING)][:6]
        return " / ".join([*death, *lines[-3:]]) or "it said nothing"


@contextmanager
def start_l1(machine: L1Machine, folder: Path, tools: HostTools) -> Iterator[L1]:
    """An L1 from the saved state in *folder*; ended afterwards. Raises LabError."""
    with _spawn(machine, folder, tools, ["-incoming", f"file:{folder / STATE}"]) as (l1, monitor):
        deadline = time.monotonic() + _RESTORE_TIMEOUT
        while monitor.execute("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise LabError(f"L1 was not restored within {_RESTORE_TIMEOUT:g} s")
            time.sleep(_POLL)
        monitor.execute("cont")
        yield l1


def save_state(machine: L1Machine, folder: Path, tools: HostTools) -> None:
    """Boot an L1 from the files in *folder* until its agent listens, and save it there."""
    with _spawn(machine, folder, tools, []) as (l1, monitor):
        kind, _ = l1.receive(_BOOT_TIMEOUT)
        if kind is not Kind.READY:
            raise LabError(f"L1's agent said {kind.name} first")
        monitor.execute("stop")
        monitor.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        monitor.execute("migrate", uri=f"file:{folder / STATE}")
        while (status := monitor.execute("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise LabError(f"the outer QEMU cannot save L1's state: migration {status}")
            time.sleep(_POLL)


@contextmanager
def _spawn(
    machine: L1Machine, folder: Path, tools: HostTools, extra: list[str]
) -> Iterator[tuple[L1, Monitor]]:
    """An outer QEMU that the kernel kills when we end, and whose sockets nobody else can reach."""
    channel, channel_end = socket.socketpair()
    control, control_end = socket.socketpair()
    with tempfile.TemporaryFile() as log, channel, control:
        with channel_end, control_end:
            fds = (channel_end.fileno(), control_end.fileno())
            process = subprocess.Popen(
                [
                    *(find_tool("setpriv"), "--pdeathsig", "KILL"),
                    *tools.emulator(machine),
                    *_arguments(machine, folder, *fds),
                    *extra,
                ],
                env=tools.emulator_environment,
                stdin=subprocess.DEVNULL,
                stdout=log,  # with L1's console
                stderr=log,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C is for us; we end it
            )
        l1 = L1(process, channel, log)
        monitor = Monitor(control)
        try:
            try:
                monitor.greet()
            except LabError as error:
                raise LabError(f"the outer QEMU did not start: {l1.last_words()}") from error
            yield l1, monitor
        finally:
            process.kill()
            process.wait()


def _arguments(machine: L1Machine, folder: Path, channel: int, control: int) -> list[str]:
    append = f"console={machine.console} quiet panic=-1 mitigations=off {machine.append}"
    return [
        *("-name", "kvmdbg-lab", "-no-user-config", "-nodefaults", "-display", "none"),
        *("-no-reboot", *machine.arguments, "-smp", str(CPUS), "-m", str(MEMORY_MIB)),
        *("-kernel", str(folder / KERNEL), "-initrd", str(folder / INITRAMFS), "-append", append),
        *("-drive", f"file={folder / ROOT},format=raw,if=none,id=root,readonly=on"),
        *("-device", "virtio-blk-pci,drive=root"),
        *("-chardev", f"socket,id=lab,fd={channel}", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=lab,name=lab"),
        *("-chardev", f"socket,id=control,fd={control}", "-mon", "chardev=control,mode=control"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
    ]
