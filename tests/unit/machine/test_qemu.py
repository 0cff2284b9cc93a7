"""The QEMU program and its arguments."""

from pathlib import Path

import pytest

from kvmdbg.arch import ARCHITECTURES
from kvmdbg.errors import LaunchError
from kvmdbg.machine.boards import BOARDS
from kvmdbg.machine.define import BootFiles, Definition
from kvmdbg.machine.qemu import (
    arguments,
    find_qemu,
    kernel_command_line,
    parse_version,
    qemu_version,
)
from kvmdbg.machine.runtime import VmFolder

PROCESSOR = ("-accel", "kvm", "-cpu", "host")


def following(argv: list[str], option: str) -> list[str]:
    return [argv[at + 1] for at, argument in enumerate(argv) if argument == option]


def test_arguments_of_a_whole_definition() -> None:
    definition = Definition(memory="1G", cpus=2, append="quiet", kaslr=False)
    files = BootFiles(Path("/k"), Path("/i"), Path("/d.qcow2"))
    argv = arguments(
        definition, files, VmFolder(Path("/run/vm")), "demo", PROCESSOR, ["-device", "x"]
    )
    assert following(argv, "-name") == ["guest=demo,debug-threads=on"]
    assert following(argv, "-accel") == ["kvm"]
    assert following(argv, "-smp") == ["2"]
    assert following(argv, "-m") == ["1G"]
    assert following(argv, "-kernel") == ["/k"]
    assert following(argv, "-initrd") == ["/i"]
    assert following(argv, "-append") == ["quiet nokaslr console=ttyS0"]
    assert following(argv, "-drive") == ["file=/d.qcow2,format=qcow2,if=virtio"]
    assert following(argv, "-gdb") == ["unix:/run/vm/stub.sock,server=on,wait=off"]
    assert len(following(argv, "-mon")) == 2
    assert "-S" in argv
    assert argv[-2:] == ["-device", "x"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_has_a_board(arch: str) -> None:
    board = BOARDS[arch]
    definition = Definition(arch=arch)
    files = BootFiles(kernel=Path("/k"))
    argv = arguments(definition, files, VmFolder(Path("/run/vm")), "x", PROCESSOR, [])
    assert following(argv, "-machine") == [board.machine]
    assert following(argv, "-append") == [f"console={board.console}"]


def test_a_bare_machine_has_no_kernel_and_no_disk() -> None:
    argv = arguments(Definition(), BootFiles(), VmFolder(Path("/run/vm")), "bare", PROCESSOR, [])
    assert not {"-kernel", "-append", "-initrd", "-drive"} & set(argv)


def test_commas_in_paths_are_doubled_and_raw_is_never_probed() -> None:
    files = BootFiles(disk=Path("/a,b.img"))
    argv = arguments(Definition(), files, VmFolder(Path("/run/v,m")), "x", PROCESSOR, [])
    assert following(argv, "-drive") == ["file=/a,,b.img,format=raw,if=virtio"]
    assert following(argv, "-gdb") == ["unix:/run/v,,m/stub.sock,server=on,wait=off"]


@pytest.mark.parametrize(
    ("append", "kaslr", "expected"),
    [
        ("", True, "console=ttyS0"),
        ("console=hvc0", True, "console=hvc0"),
        ("nokaslr console=ttyS0", False, "nokaslr console=ttyS0"),
        ("quiet", False, "quiet nokaslr console=ttyS0"),
    ],
)
def test_kernel_command_line(append: str, kaslr: bool, expected: str) -> None:
    assert kernel_command_line(Definition(append=append, kaslr=kaslr)) == expected


def test_missing_qemu_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="apt-get install qemu-system-x86"):
        find_qemu(Definition())
    with pytest.raises(LaunchError, match=r"cannot run .*/nope, which the key qemu names for"):
        find_qemu(Definition(qemu="./nope", path=tmp_path / "vm.toml"))


def test_versions() -> None:
    assert parse_version("q", "QEMU emulator version 7.2.22 (Debian)") == (7, 2, 22)
    assert parse_version("q", "QEMU emulator version 10.0\n") == (10, 0, 0)
    with pytest.raises(LaunchError, match=r"q does not look like QEMU: .*'nonsense'"):
        parse_version("q", "hello\nnonsense\n")


async def test_an_old_qemu_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho QEMU emulator version 5.2.0\n")
    program.chmod(0o755)
    with pytest.raises(LaunchError, match=r"is QEMU 5.2.0, which is too old: .* 7.2 or newer"):
        await qemu_version(str(program))
