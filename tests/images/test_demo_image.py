"""The demo images, built for real (into the user's cache) and booted without kvmdbg."""

import os
import re
import selectors
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from kvmdbg.images import Image, ImageStore, builtin_dir, load_recipe
from kvmdbg.images.kernel import elf_symbols
from kvmdbg.progress import PlainProgress

READY = b"kvmdbg-demo: ready"
BOOT_SECONDS = 120.0

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(600),  # the first run downloads and builds
]


@dataclass(frozen=True)
class Facts:
    """What differs between the images."""

    name: str
    machine: tuple[str, ...]
    modules: int
    gdb: str
    start: tuple[str, int]
    """The kernel's first symbol, and its address."""
    symbols: tuple[str, ...]
    """Further symbols that it has."""


IMAGES = (
    Facts(
        "demo",
        ("qemu-system-x86_64", "-machine", "q35", "-cpu", "max"),
        modules=2,
        gdb="gdb",
        start=("_text", 0xFFFFFFFF81000000),
        symbols=("start_kernel", "do_sys_openat2", "init_task"),
    ),
    Facts(
        "demo-aarch64",
        ("qemu-system-aarch64", "-machine", "virt", "-cpu", "max,pauth=off"),
        modules=0,
        gdb="gdb-multiarch",
        start=("_stext", 0xFFFF800008010000),
        symbols=("start_kernel", "do_sys_openat2", "panic"),
    ),
)


@pytest.fixture(scope="module", params=IMAGES, ids=lambda facts: facts.name)
def facts(request: pytest.FixtureRequest) -> Facts:
    assert isinstance(request.param, Facts)
    return request.param


@pytest.fixture(scope="module")
def image(facts: Facts) -> Image:
    recipe = load_recipe(builtin_dir() / facts.name / "recipe.toml")
    return ImageStore().ensure(recipe, PlainProgress(), verify=True)


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
def booted(facts: Facts, image: Image, *extra: str, cpus: int = 1) -> Iterator[Console]:
    definition = tomllib.loads((builtin_dir() / facts.name / "vm.toml").read_text())
    process = subprocess.Popen(
        [
            *(*facts.machine, "-accel", "tcg", "-m", definition["memory"]),
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
def test_boots_to_ready_and_serves_a_shell(facts: Facts, image: Image, cpus: int) -> None:
    with booted(facts, image, cpus=cpus) as console:
        console.wait_for(READY)
        console.wait_for(b"demo# ")
        # The console echoes what is typed: the answers must not look like the questions.
        console.send("echo cpus=$(nproc)")
        assert int(console.wait_for(rb"cpus=(\d+)")[1]) == cpus
        console.send("lsmod | grep -c '^pvpanic' | sed s/^/modules=/")
        assert int(console.wait_for(rb"modules=(\d)")[1]) == facts.modules
        # The file the workload rewrites on every tick.
        # A look may find it empty, twice: it is truncated before it is written.
        console.send("a=$(md5sum /tmp/workload); for i in 1 2 3 4 5 6 7 8 9; do sleep 1")
        console.send('[ "$a" = "$(md5sum /tmp/workload)" ]; b=$?; [ $b = 1 ] && break; done')
        console.send("echo idle=$b")
        assert console.wait_for(rb"idle=(\d)")[1] == b"1"
        assert console.output.count(READY) == 1


@pytest.mark.parametrize("command", ["poweroff", "reboot"])
def test_the_shell_can_end_the_vm(facts: Facts, image: Image, command: str) -> None:
    with booted(facts, image) as console:
        console.wait_for(b"demo# ")
        console.send(command)
        with pytest.raises(AssertionError, match="QEMU ended"):
            console.wait_for(b"never printed", timeout=30)


def test_the_symbol_file_knows_the_kernel(facts: Facts, image: Image) -> None:
    symbols = elf_symbols(image.artefact("vmlinux"))
    name, address = facts.start
    assert symbols[name] == address
    assert all(symbols[name] > address for name in facts.symbols)
    assert len(symbols) > 40_000


@pytest.mark.gdb
def test_gdb_reads_the_symbol_file_without_a_word(facts: Facts, image: Image) -> None:
    done = subprocess.run(
        [
            *(facts.gdb, "-nx", "-batch", "-ex", "info address start_kernel"),
            str(image.artefact("vmlinux")),
        ],
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
