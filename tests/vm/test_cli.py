"""The command line, as users and scripts meet it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import kvmdbg
from kvmdbg import Vm
from tests.support import command, demo, vms
from tests.support.gdb import start_gdb
from tests.support.terminal import Terminal, on_terminal

pytestmark = pytest.mark.vm

running = pytest.mark.kvmdbg(run=True)


# --- without a VM --------------------------------------------------------------------------------


async def test_version() -> None:
    done = await command.kvmdbg("--version")
    assert (done.status, done.out, done.err) == (0, f"kvmdbg {kvmdbg.__version__}\n", "")


async def test_help_names_every_command() -> None:
    done = await command.kvmdbg("--help")
    assert done.status == 0
    for word in ("ls", "images", "console", "quit", "completion", "--stdio", "--gdb", "--listen"):
        assert word in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "which VM? say --vm NAME"),
        (("quit",), "which VM? say --vm NAME"),
        (("--no-such-option",), "--no-such-option"),
        (("no-such-command",), "no-such-command"),
        (("--vm", "demo", "--accel", "xen"), "xen"),
        (("--vm", "demo", "--stdio", "--gdb"), "not allowed with"),
        (("--vm", "demo", "--", "-batch"), "say --gdb too"),
        (("--vm", "demo", "--set", "cpus"), "say KEY=VALUE"),
    ],
)
async def test_a_wrong_command_line_is_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    done = await command.kvmdbg(*arguments)
    assert done.status == 2
    assert words in done.sentence


@pytest.mark.parametrize("arguments", [("ls",), ("doctor", "--json"), ("completion", "bash")])
async def test_output_that_cannot_be_written_is_one_sentence(arguments: tuple[str, ...]) -> None:
    shell = f"{command.KVMDBG} {' '.join(arguments)} >/dev/full"
    done = await command.run("bash", "-c", shell)
    assert done.status == 1
    assert done.sentence == "cannot write to standard output: No space left on device"


async def test_ls_says_which_definition_cannot_be_used(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("kernel = 3\n")
    done = await command.kvmdbg("ls", cwd=tmp_path)
    assert done.status == 0
    assert re.search(rf"^  wrong +broken +{re.escape(str(wrong))}$", done.out, re.MULTILINE)
    problem = f"{wrong}:1: kernel: expected a path, or image:NAME, got 3"
    assert done.err == f"kvmdbg: {problem}\n"


async def test_completion_is_a_script_that_bash_accepts(tmp_path: Path) -> None:
    done = await command.kvmdbg("completion", "bash")
    assert done.status == 0
    assert "--stdio" in done.out
    (tmp_path / "completion").write_text(done.out)
    assert (await command.run("bash", "-n", tmp_path / "completion")).err == ""


async def test_images_lists_the_demo() -> None:
    folder = demo.artefact("vmlinux").parent
    done = await command.kvmdbg("images")
    assert done.status == 0
    assert f"demo: built, in {folder}\n" in done.out


async def test_an_unknown_image_names_those_that_are_there() -> None:
    done = await command.kvmdbg("images", "no-such-image")
    assert done.status == 1
    assert done.sentence == "there is no image recipe no-such-image: there are demo, demo-aarch64"


async def test_an_unknown_vm_names_the_candidates() -> None:
    done = await command.kvmdbg("--vm", "dema")
    assert done.status == 1
    assert done.sentence.startswith("there is no VM and no definition named dema: there are demo")


async def test_an_unknown_pid() -> None:
    done = await command.kvmdbg("--vm", f"pid:{os.getpid()}")
    assert done.status == 1
    assert f"no QEMU runs with process id {os.getpid()}" in done.sentence


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--accel=tcg", "--engine=agent"), "under tcg: use --engine stub"),
        (("--name", "no/good"), "cannot name a VM"),
        (("--set", "cpus=0"), "cpus: expected a number of vCPUs"),
        (("--set", "colour=red"), "colour: there is no such key"),
        (("--listen", "tcp:0.0.0.0:0"), "only loopback is allowed"),
        (("--listen", "tcp:example.org:1"), "is no IP address"),
        (("--listen", "tcp:127.0.0.1:http"), "is no TCP port"),
        (("--listen", "serial:/dev/null,fast"), "use serial:DEVICE or serial:DEVICE,SPEED"),
        (("--listen", "carrier-pigeon"), "use unix:PATH, tcp:HOST:PORT"),
        (("--listen", "serial:/dev/nosuch"), "there is no /dev/nosuch"),
        (("--stdio",), "is for a gdb at the other end of a pipe, and standard input is none"),
    ],
)
async def test_what_cannot_be_is_refused_and_boots_nothing(
    option: tuple[str, str], words: str
) -> None:
    name = command.fresh_name()
    named = () if option[0] == "--name" else ("--name", name)
    done = await command.kvmdbg("--vm", "demo", *named, *option)
    assert done.status in (1, 2)
    assert words in done.sentence
    assert not vms.folders(name)


@pytest.mark.parametrize("verb", ["quit", "console"])
async def test_commands_for_a_running_vm_boot_nothing(verb: str, tmp_path: Path) -> None:
    name = command.fresh_name()
    (tmp_path / f"{name}.toml").write_text('kernel = "k"\n')
    (tmp_path / "k").touch()
    done = await command.kvmdbg("--vm", name, verb, cwd=tmp_path)
    assert done.status == 1
    assert done.sentence == f"the VM {name} is not running: kvmdbg --vm {name} boots it"
    assert not vms.folders(name)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('kernel = "missing"\n', 1, "kernel: there is no file"),
        ('\n\nmemory = "much"\n', 3, "memory: expected a size"),
        ("cpus = 1\ncolour = 1\n", 2, "colour: there is no such key; known are kernel"),
        ('[debug]\non_kill = "explode"\n', 2, 'debug.on_kill: expected "quit" or "detach"'),
    ],
)
async def test_a_wrong_definition_names_file_line_and_key(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    done = await command.kvmdbg("--vm", path)
    assert done.status == 1
    assert f"{path}:{line}: {words}" in done.sentence


async def test_a_qemu_that_dies_at_start_is_quoted() -> None:
    name = command.fresh_name()
    done = await command.kvmdbg(
        "--vm", "demo", "--name", name, "--set", 'extra_args=["-no-such-option"]'
    )
    assert done.status == 1
    assert "-no-such-option: invalid option: check extra_args" in done.err.splitlines()[-1]
    assert not vms.folders(name)


# --- with one ------------------------------------------------------------------------------------


async def test_ls_is_plain_columns_when_piped(kvmdbg_vm: Vm) -> None:
    done = await command.kvmdbg("ls")
    assert done.status == 0
    row = next(line for line in done.out.splitlines() if f" {kvmdbg_vm.name} " in line)
    facts = vms.info(kvmdbg_vm.name)
    assert facts is not None
    assert row.split() == [
        *(kvmdbg_vm.name, str(facts.pid), "x86_64", "tcg", "yes"),
        str(facts.monitor),
    ]
    assert re.search(r"^  demo +x86_64 +/.*/demo/vm.toml$", done.out, re.MULTILINE)


async def test_quit_ends_the_vm(kvmdbg_vm: Vm) -> None:
    done = await command.kvmdbg("--vm", kvmdbg_vm.name, "quit")
    assert done.status == 0
    assert (await kvmdbg_vm.wait_gone()).text == "kvmdbg told QEMU to quit"
    await vms.wait_ended(kvmdbg_vm.name)


@pytest.mark.kvmdbg(cpus=3, memory="256M")
async def test_overrides_of_the_definition(kvmdbg_vm: Vm) -> None:
    assert kvmdbg_vm.vcpus == 3
    memory = await kvmdbg_vm.monitor("info memory_size_summary")
    assert f"base memory: {256 * 2**20}" in memory


async def test_options_that_come_too_late_are_refused(kvmdbg_vm: Vm) -> None:
    done = await command.kvmdbg("--vm", kvmdbg_vm.name, "--set", "cpus=2")
    assert done.status == 2
    assert f"the VM {kvmdbg_vm.name} runs already" in done.sentence


@pytest.mark.gdb
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_gdb_over_loopback_tcp(kvmdbg_vm: Vm, host: str) -> None:
    listen = ("--listen", f"tcp:{host}:0")
    async with command.foreground("--vm", kvmdbg_vm.name, *listen) as serving:
        line = await serving.wait_line("serving gdb on tcp:")
        async with start_gdb(None, line.rpartition("tcp:")[2]) as gdb:
            assert await gdb.value("$rip") == 0xFFF0


@pytest.mark.gdb
async def test_gdb_over_a_unix_socket_of_ones_own(kvmdbg_vm: Vm, tmp_path: Path) -> None:
    path = tmp_path / "gdb.sock"
    async with command.foreground("--vm", kvmdbg_vm.name, "--listen", f"unix:{path}") as serving:
        await serving.wait_line(f"serving gdb on unix:{path}")
        assert path.stat().st_mode & 0o777 == 0o600
        async with start_gdb(None, str(path)) as gdb:
            assert await gdb.value("$rip") == 0xFFF0


@pytest.mark.gdb
async def test_foreground_tells_when_gdb_comes_and_goes(kvmdbg_vm: Vm) -> None:
    async with command.foreground("--vm", kvmdbg_vm.name) as watching:
        await watching.wait_line("frozen at its first instruction (QEMU pid ")
        async with start_gdb(None, kvmdbg_vm.status.gdb_socket) as gdb:
            await watching.wait_line("gdb-1 connected")
            await gdb.cli("detach")
            await watching.wait_line("gdb-1 detached")
        watching.press_ctrl_c()
        assert await watching.wait_end() == 0
    assert kvmdbg_vm.gone is None, "another client is there"


@pytest.mark.gdb
async def test_gdb_option_runs_a_connected_gdb_with_symbols(kvmdbg_vm: Vm) -> None:
    done = await command.kvmdbg(
        *("--vm", kvmdbg_vm.name, "--gdb", "--", "-nx", "-batch"),
        *("-ex", "p/x $rip", "-ex", "info address start_kernel", "-ex", "detach"),
    )
    assert done.status == 0
    assert "$1 = 0xfff0\n" in done.out
    assert f'"start_kernel" is at {demo.kernel()["start_kernel"]:#x}' in done.out


@pytest_asyncio.fixture
async def console(kvmdbg_vm: Vm) -> AsyncIterator[Terminal]:
    """``kvmdbg console`` on a terminal, at the shell of a booted guest."""
    await demo.booted(kvmdbg_vm)
    async with on_terminal(command.KVMDBG, "--vm", kvmdbg_vm.name, "console") as terminal:
        yield terminal


@running
@pytest.mark.parametrize("typed", ["", "echo 'fi'led\n"])
async def test_consoles_input_can_be_a_file(kvmdbg_vm: Vm, typed: str, tmp_path: Path) -> None:
    await demo.booted(kvmdbg_vm)
    file = tmp_path / "typed"
    file.write_text(typed)
    process = await asyncio.create_subprocess_shell(
        f"exec {command.KVMDBG} --vm {kvmdbg_vm.name} console < {file if typed else os.devnull}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            await process.stdout.readuntil(b"\nfiled" if typed else b"kvmdbg-demo: ready")
            await kvmdbg_vm.quit()
            _, errors = await process.communicate()
        assert process.returncode == 0
        assert b"Traceback" not in errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@running
async def test_console_is_the_guests_shell_until_ctrl_bracket(
    kvmdbg_vm: Vm, console: Terminal
) -> None:
    await console.wait_for(b"Ctrl-] detaches")
    # What was printed before we came.
    await console.wait_for(b"kvmdbg-demo: ready")
    console.type(b"echo 'sixtimesseven='$((6*7))\r")
    await console.wait_for(b"\nsixtimesseven=42")
    # Ctrl-C is the guest's: it ends a loop that is known to be reading.
    console.type(b"while read line; do echo got $line; done\r")
    console.type(b"this\r")
    await console.wait_for(b"got this")
    console.type(b"\x03")
    await console.wait_for(b"demo# ")
    console.type(b"echo 'interrup'ted\r")
    await console.wait_for(b"\ninterrupted")
    console.type(b"\x1d")
    await console.wait_for(b"console detached")
    assert await console.wait_end() == 0
    assert await vms.run_state(kvmdbg_vm.status) == "running"
