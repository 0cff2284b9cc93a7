"""The command line's grammar."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from kvmdbg import __version__
from kvmdbg.errors import UsageError

DESCRIPTION = """\
Debug Linux kernels in virtual machines, with the gdb you already use.

  kvmdbg --vm NAME            attach to VM NAME if it runs, else boot its definition; serve gdb
  kvmdbg --vm NAME --gdb      the same, and start gdb, connected, with symbols
"""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as the UsageError that it is."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see kvmdbg --help)")


def build_parser() -> Parser:
    """The whole grammar."""
    parser = Parser(
        prog="kvmdbg",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kvmdbg {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more of what happens")
    _add_vm(parser)
    _add_client_options(parser.add_argument_group("how to debug it"))
    _add_vm_options(parser.add_argument_group("how to run it"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")

    def add(name: str, purpose: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=purpose, description=purpose)

    add("ls", "show running and defined VMs")
    doctor = add("doctor", "show what this host's KVM and QEMU really do")
    doctor.add_argument("--json", action="store_true", help="print the whole report as JSON")
    images = add("images", "build VM images, or show what there is")
    images.add_argument("image", nargs="?", metavar="NAME", help="build this one")
    for name, purpose in (
        ("console", "with --vm: the guest's serial line; Ctrl-] detaches"),
        ("quit", "with --vm: end a VM that kvmdbg booted, leave any other"),
    ):
        _add_vm(add(name, purpose), default=argparse.SUPPRESS)  # before or after the command
    completion = add("completion", "print a completion script")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _add_vm(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--vm",
        metavar="NAME",
        default=default,
        help="a running VM (its name, any QEMU's -name, or pid:N), or a definition",
    )


def _add_client_options(group: argparse._ArgumentGroup) -> None:
    client = group.add_mutually_exclusive_group()
    client.add_argument(
        "--gdb", action="store_true", help="start gdb, connected; its arguments follow --"
    )
    client.add_argument(
        "--stdio",
        action="store_true",
        help="serve RSP on stdin and stdout: gdb -ex 'target remote | kvmdbg --vm NAME --stdio'",
    )
    group.add_argument(
        "--listen",
        metavar="ADDR",
        action="append",
        default=[],
        help="serve gdb here too: unix:PATH, tcp:HOST:PORT (loopback only), pty: or pty:LINK, "
        "serial:DEVICE or serial:DEVICE,SPEED",
    )


def _add_vm_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="what runs the guest"
    )
    group.add_argument(
        "--engine", choices=("auto", "agent", "stub"), default="auto", help="what debugs it"
    )
    group.add_argument("--run", action="store_true", help="let a booted VM run at once")
    group.add_argument("--keep", action="store_true", help="let the VM outlive its clients")
    group.add_argument("--name", metavar="NAME", help="run a definition under another name")
    group.add_argument(
        "--record",
        metavar="FILE",
        type=Path,
        help="record the run; FILE, and FILE.json beside it, are there when the VM has ended",
    )
    group.add_argument(
        "--replay",
        metavar="FILE",
        type=Path,
        help="the recorded run once more: in gdb, reverse-stepi and reverse-continue work",
    )
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="another value for a key of the definition, e.g. cpus=2",
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse a command line; ``gdb_args`` holds what followed ``--``. Raises UsageError."""
    own, gdb_args = argv, []
    if "--" in argv:
        split = argv.index("--")
        own, gdb_args = argv[:split], argv[split + 1 :]
    arguments = build_parser().parse_args(own)
    arguments.gdb_args = gdb_args
    arguments.overrides = dict(_override(text) for text in arguments.overrides)
    if gdb_args and not arguments.gdb:
        raise UsageError("arguments after -- are for gdb: say --gdb too (see kvmdbg --help)")
    if arguments.command in (None, "console", "quit") and not arguments.vm:
        raise UsageError("which VM? say --vm NAME (kvmdbg ls shows them)")
    return arguments


def _override(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``; the value is read as TOML, and as a plain string where it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text}: say KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
