"""The demo image, built for real (into the user's cache) and booted without kvmdbg."""

import os
import re
import selectors
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvmdbg.images import Image, ImageStore, builtin_dir, load_recipe
from kvmdbg.images.kernel import elf_symbols
from kvmdbg.progress import PlainProgress

DEMO = builtin_dir() / "demo"
READY = b"kvmdbg-demo: ready"
BOOT_SECONDS = 120.0

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(600),  # the first run downloads and builds
]


@pytest.fixture(scope="module")
def image() -> Image:
    return ImageStore().ensure(load_recipe(DEMO / "recipe.toml"), PlainProgress(), verify=True)


class Console:
    """A VM's serial line on pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.output = b""

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def wait_for(self, pattern: bytes, timeout: float = BOOT_SECONDS) -> re.Match[bytes]:
        """The first match of a regular expression in everything printed so far."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not (match := re.search(pattern, self.output)):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise AssertionError(f"no {pattern!r} in {timeout} s: {self.output[-2000:]!r}")
                data = os.read(self._process.stdout.fileno(), 65536)
                if not data:
                    raise AssertionError(f"QEMU ended before {pattern!r}: {self.output[-2000:]!r}")
                self.output += data
        return match


@contextmanager
def booted(image: Image, *extra: str, cpus: int = 1) -> Iterator[Console]:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    definition = tomllib.loads((DEMO / "vm.toml").read_text())
    process = subprocess.Popen(
        [
            *(qemu, "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", definition["memory"]),
            *("-smp", str(cpus), "-nodefaults", "-no-reboot", "-nographic", "-serial", "stdio"),
            *("-kernel", str(image.artefact(definition["kernel"].removeprefix("image:")))),
            *("-initrd", str(image.artefact(definition["initrd"].removeprefix("image:")))),
            *("-append", definition["append"] + " nokaslr"),
            *extra,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            yield Console(process)
        finally:
            process.kill()


@pytest.mark.parametrize("cpus", [1, 2])
def test_boots_to_ready_and_serves_a_shell(image: Image, cpus: int) -> None:
    with booted(image, cpus=cpus) as console:
        console.wait_for(READY)
        console.wait_for(b"demo# ")
        # The console echoes what is typed: the answers must not look like the questions.
        console.send("echo cpus=$(nproc)")
        assert int(console.wait_for(rb"cpus=(\d+)")[1]) == cpus
        console.send("lsmod | grep -c '^pvpanic' | sed s/^/modules=/")
        assert console.wait_for(rb"modules=(\d)")[1] == b"2"
        # The file the workload rewrites on every tick.
        console.send('a=$(md5sum /tmp/workload); sleep 1; [ "$a" = "$(md5sum /tmp/workload)" ]')
        console.send("echo idle=$?")
        assert console.wait_for(rb"idle=(\d)")[1] == b"1"
        assert console.output.count(READY) == 1


@pytest.mark.parametrize("command", ["poweroff", "reboot"])
def test_the_shell_can_end_the_vm(image: Image, command: str) -> None:
    with booted(image) as console:
        console.wait_for(b"demo# ")
        console.send(command)
        with pytest.raises(AssertionError, match="QEMU ended"):
            console.wait_for(b"never printed", timeout=30)


def test_the_symbol_file_knows_the_kernel(image: Image) -> None:
    symbols = elf_symbols(image.artefact("vmlinux"))
    assert symbols["_text"] == 0xFFFFFFFF81000000
    for name in ("start_kernel", "do_sys_openat2", "init_task"):
        assert symbols[name] > symbols["_text"]
    assert len(symbols) > 50_000


@pytest.mark.gdb
def test_gdb_reads_the_symbol_file_without_a_word(image: Image) -> None:
    gdb = shutil.which("gdb")
    if gdb is None:
        pytest.skip("gdb is not installed")
    done = subprocess.run(
        [gdb, "-nx", "-batch", "-ex", "info address start_kernel", str(image.artefact("vmlinux"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r'Symbol "start_kernel" is at 0x[0-9a-f]+ .*\n', done.stdout)
    assert done.stderr == ""


def test_the_workload_has_names_at_fixed_addresses(image: Image) -> None:
    symbols = elf_symbols(image.artefact("workload"))
    code = ("workload_main", "workload_tick", "workload_compute", "workload_increment")
    data = ("workload_iterations", "workload_checksum", "workload_mode", "workload_errors")
    addresses = [symbols[name] for name in (*code, *data)]
    assert len(set(addresses)) == len(addresses)
    assert 0x400000 <= min(addresses) <= max(addresses) < 0x500000
