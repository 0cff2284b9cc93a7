"""``python -m tests.lab``: what ``make lab``, ``make lab-shell`` and ``make lab-update`` run."""

from __future__ import annotations

import argparse
import os
import sys
import time

from kvmdbg.errors import KvmdbgError
from kvmdbg.progress import PlainProgress, SilentProgress
from tests.lab.cache import Cache
from tests.lab.channel import Kind, encode
from tests.lab.errors import LabError
from tests.lab.l1 import L1, Request
from tests.lab.lab import BUILD_TIME, Lab
from tests.lab.machines import CPUS, MACHINES
from tests.lab.onhost import run_on_host
from tests.lab.terminal import run_shell
from tests.lab.tree import ROOT
from tests.lab.update import update_pins


def main() -> int:
    """Exit status: that of the command inside; 1 with one sentence when the lab fails."""
    options = _parser().parse_args()
    try:
        if options.action == "update":
            update_pins(Cache(), PlainProgress())
            return 0
        if options.where == "host":
            return run_on_host(options.command)
        return _in_lab(options)
    except KvmdbgError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="A guest with real KVM, anywhere.")
    parser.add_argument("--arch", choices=MACHINES, default="x86_64", help="architecture of L1")
    parser.add_argument(
        "--where", choices=("l1", "host"), default="l1", help="in an L1, or on this machine"
    )
    parser.add_argument("--cpus", type=int, choices=range(1, CPUS + 1), help="of L1")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("times", help="build what is missing, and say how long things take")
    run = actions.add_parser("run", help="run a command in the working tree inside an L1")
    run.add_argument("command")
    run.add_argument("--file", default="", help="a file to bring back, relative to the tree")
    actions.add_parser("shell", help="an interactive shell inside an L1").set_defaults(command="")
    actions.add_parser("update", help="pin what mirror and package index have today")
    parser.set_defaults(command="")
    return parser


def _in_lab(options: argparse.Namespace) -> int:
    lab = Lab(options.arch, cpus=options.cpus)
    if options.action == "times":
        return _tell_times(lab)
    tree = lab.pack_tree(PlainProgress())
    with lab.start(PlainProgress()) as l1:
        if options.action == "shell":
            return run_shell(l1, tree)
        return _run(l1, Request(options.command, tree, options.file))


def _run(l1: L1, request: Request) -> int:
    l1.request(request)
    l1.send(encode(Kind.INPUT))
    streams = {Kind.OUTPUT: sys.stdout.fileno(), Kind.ERRORS: sys.stderr.fileno()}

    def show(kind: Kind, payload: bytes) -> None:
        view = memoryview(payload)
        while view:
            view = view[os.write(streams[kind], view) :]

    status, content = l1.follow(show)
    if request.file:
        if content is None:
            raise LabError(f"the command exited with {status} and left no file {request.file}")
        (ROOT / request.file).write_bytes(content)
    return status


def _tell_times(lab: Lab) -> int:
    _, folder = lab.ensure(PlainProgress())
    tree = lab.pack_tree(PlainProgress())
    start = time.monotonic()
    with lab.start(SilentProgress()) as l1:
        started = time.monotonic()
        l1.run("true")
        answered = time.monotonic()
        l1.run("true", tree=tree)
        with_tree = time.monotonic()
    print(f"L1 {lab.machine.arch} in {folder}")
    print(
        f"  cold build         {float((folder / BUILD_TIME).read_text()):6.2f} s, when it was made"
    )
    print(f"  warm start         {started - start:6.2f} s")
    print(f"  round trip (true)  {answered - started:6.2f} s")
    print(f"  with the tree      {with_tree - answered:6.2f} s for {len(tree) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
