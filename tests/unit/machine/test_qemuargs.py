"""What the command line of a running QEMU tells."""

import pytest

from kvmdbg.machine.qemuargs import QemuCommand, arch_of, parse_command


def parse(text: str) -> QemuCommand:
    return parse_command(text.split(), "x86_64")


@pytest.mark.parametrize(
    ("program", "arch"),
    [
        ("/usr/bin/qemu-system-x86_64", "x86_64"),
        ("qemu-system-aarch64", "aarch64"),
        ("qemu-system-x86_64-10.0", "x86_64"),
        ("qemu-system-x86_64.real", "x86_64"),
        ("/usr/bin/qemu-img", None),
        ("/usr/bin/gdb", None),
        ("", None),
    ],
)
def test_the_program_gives_the_architecture(program: str, arch: str | None) -> None:
    assert arch_of(program) == arch


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("-name foo", "foo"),
        ("--name guest=foo,debug-threads=on", "foo"),
        ("-name debug-threads=on,guest=foo", "foo"),
        ("-name foo,,bar,process=x", "foo,bar"),
        ("-m 512", None),
    ],
)
def test_name(arguments: str, name: str | None) -> None:
    assert parse(arguments).name == name


@pytest.mark.parametrize(
    ("arguments", "accel"),
    [
        ("", "tcg"),
        ("-accel tcg,thread=multi", "tcg"),
        ("-enable-kvm", "kvm"),
        ("-machine q35,accel=kvm:tcg", "kvm"),
        ("-M accel=kvm", "kvm"),
        ("-accel accel=kvm -accel tcg", "kvm"),
        ("-machine q35", "tcg"),
    ],
)
def test_accelerator(arguments: str, accel: str) -> None:
    assert parse(arguments).accel == accel


@pytest.mark.parametrize(
    ("arguments", "monitors"),
    [
        ("-qmp unix:/a,server=on,wait=off", ("/a",)),
        ("-qmp unix:/a,,b,server,nowait", ("/a,b",)),
        ("-qmp-pretty unix:x.sock,server", ("x.sock",)),
        ("-qmp tcp:localhost:4444,server", ()),
        ("-chardev socket,id=m,path=/a,server=on -mon chardev=m,mode=control", ("/a",)),
        ("-mon m,mode=control -chardev socket,id=m,path=/a,abstract=on", ("\0/a",)),
        ("-chardev socket,id=m,path=/a -mon chardev=m", ()),
        ("-chardev socket,id=m,fd=22,server=on -mon chardev=m,mode=control", ()),
        ("-qmp chardev:m -chardev socket,path=/a,id=m", ("/a",)),
        ("-qmp unix:/a,server -qmp unix:/b,server", ("/a", "/b")),
    ],
)
def test_monitors(arguments: str, monitors: tuple[str, ...]) -> None:
    assert parse(arguments).monitors == monitors


@pytest.mark.parametrize(
    ("arguments", "gdb"),
    [("-s", "tcp::1234"), ("-gdb unix:/g,server=on", "unix:/g,server=on"), ("-S", None)],
)
def test_stub(arguments: str, gdb: str | None) -> None:
    assert parse(arguments).gdb == gdb


def test_a_flag_takes_no_argument() -> None:
    command = parse("-s -name foo -enable-kvm -gdb tcp::9")
    assert (command.name, command.gdb, command.accel) == ("foo", "tcp::9", "kvm")
