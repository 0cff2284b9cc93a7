"""``python -m tests.packets``: which client sent which packet in the live tests, into the README.

Runs the tests that have live clients, while these record (:mod:`tests.support.recording`), and
writes the table between the marks. ``--from FOLDER`` takes recordings that there are already.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import subprocess
import sys
import tempfile
import typing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from kvmdbg.rsp.server.commands import PARSERS, Command, MalformedCommand, UnknownCommand, parse
from kvmdbg.rsp.server.commands.breakpoints import InsertBreakpoint, RemoveBreakpoint
from kvmdbg.rsp.server.commands.resume import ResumeKind, VCont
from kvmdbg.rsp.server.commands.xfer import ReadObject
from kvmdbg.server.table import OBJECTS, TABLE
from kvmdbg.target.breakpoints import BreakpointKind
from tests.support.recording import Recorded

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- packets: written by make packets -->\n", "<!-- end of packets -->\n"
LIVE_TESTS = ("tests/gdb", "tests/clients")
TITLES = {
    Recorded.GDB_13: "gdb 13",
    Recorded.GDB_18: "gdb 18",
    Recorded.MI: "gdb/MI",
    Recorded.DAP: "DAP",
    Recorded.LLDB_14: "lldb 14",
    Recorded.LLDB_23: "lldb 23",
    Recorded.RAW: "raw",
}
MARKS = NEVER, REFUSED, ANSWERED = "", "E", "●"
"""What became of a packet, from worst to best; an empty reply is none."""

SILENT = {"k", "R"}
"""What the protocol has no answer to: heard is answered."""

Exchange = tuple[str, str | None]
"""A packet and its reply, if there was one: payloads as the recording has them."""


# --- the table's rows ----------------------------------------------------------------------------


def _commands(name: bytes) -> list[type[Command]]:
    """What the parser of ``name`` may return, if the server has a handler for it."""
    result = inspect.get_annotations(PARSERS[name], eval_str=True)["return"]
    handled = {entry.command for entry in TABLE}
    return [command for command in typing.get_args(result) or (result,) if command in handled]


def _told_apart() -> dict[type[Command], str]:
    """Commands that share the first word of their packet, with the name in their docstring."""
    return {
        command: command.__doc__.partition("``")[2].partition("``")[0]
        for name in PARSERS
        if len(commands := _commands(name)) > 1
        for command in commands
        if command.__doc__
    }


TOLD_APART = _told_apart()


def rows() -> list[str]:
    """Every packet that the server's table has, in its order."""
    found: list[str] = []
    for command in (entry.command for entry in TABLE):
        if command is ReadObject:
            found += [f"qXfer:{entry.name}:read" for entry in OBJECTS]
        elif command is VCont:
            found += [f"vCont;{kind.value.decode()}" for kind in ResumeKind]
        elif command in (InsertBreakpoint, RemoveBreakpoint):
            letter = "Z" if command is InsertBreakpoint else "z"
            found += [f"{letter}{kind.value}" for kind in BreakpointKind]
        elif command in TOLD_APART:
            found.append(TOLD_APART[command])
        else:
            found += [name.decode() for name in PARSERS if command in _commands(name)]
    return found


def names(packet: str) -> set[str]:
    """The rows that ``packet`` belongs to; a name of its own where it is in none."""
    payload = packet.encode("latin-1", "replace")
    match parse(payload):
        case UnknownCommand():
            word = re.match(r"[A-Za-z_.]{2,}|.", packet, re.DOTALL)
            return {word[0] if word else ""}
        case MalformedCommand(name):
            return {name}  # its data are not binary any more in a recording
        case ReadObject(name):
            return {f"qXfer:{name}:read"}
        case VCont(actions):
            return {f"vCont;{action.kind.value.decode()}" for action in actions}
        case InsertBreakpoint() | RemoveBreakpoint():
            return {packet[:2]}
        case command if type(command) in TOLD_APART:
            return {TOLD_APART[type(command)]}
        case _:
            return {max((n for n in PARSERS if payload.startswith(n)), key=len).decode()}


# --- recordings ----------------------------------------------------------------------------------

_LLDB_LINE = re.compile(r"(send|read) packet: \$([^#\n]*)")
_GDB_PACKET = re.compile(r"\$([^#$]*)#")


def exchanges(text: str) -> Iterator[Exchange]:
    """What a recording has, of gdb's form (``w`` and ``r`` begin a line) or lldb's."""
    sent: str | None = None
    for is_sent, payload in _packets(text):
        if is_sent:
            if sent is not None:
                yield sent, None
            sent = payload
        elif sent is not None and (payload == "OK" or not payload.startswith("O")):
            yield sent, payload
            sent = None
    if sent is not None:
        yield sent, None


def _packets(text: str) -> Iterator[tuple[bool, str]]:
    for line in text.splitlines():
        if found := _LLDB_LINE.search(line):
            yield found[1] == "send", found[2]
        elif line.startswith(("w ", "r ")):
            for payload in _GDB_PACKET.findall(line):
                yield line.startswith("w "), payload


def collect(folder: Path) -> dict[Recorded, dict[str, str]]:
    """By client, every packet that it sent with the best that it was answered."""
    seen: dict[Recorded, dict[str, str]] = defaultdict(dict)
    for path in sorted(folder.glob("*.log")):
        marks = seen[Recorded(path.name.partition(".")[0])]
        for packet, reply in exchanges(path.read_text(errors="replace")):
            for name in names(packet):
                marks[name] = max(marks.get(name, NEVER), _mark(name, reply), key=MARKS.index)
    return seen


def _mark(name: str, reply: str | None) -> str:
    if reply is None:
        return ANSWERED if name in SILENT else NEVER
    if re.match(r"E[.\d]", reply):
        return REFUSED
    return ANSWERED if reply else NEVER


# --- the README ----------------------------------------------------------------------------------


def render(seen: dict[Recorded, dict[str, str]]) -> str:
    """The section, between its marks."""
    titles = " | ".join(TITLES.values())
    lines = [f"| packet | {titles} |", f"|---|{':-:|' * len(TITLES)}"]
    for row in rows():
        marks = " | ".join(seen.get(client, {}).get(row, NEVER) for client in TITLES)
        lines.append(f"| `{row}` | {marks} |")
    lines += ["", "Asked for and left to the client's own means, by the empty reply:", ""]
    for client, title in TITLES.items():
        others = sorted(set(seen.get(client, {})) - set(rows()))
        if others and client is not Recorded.RAW:
            lines.append(f"* {title}: " + ", ".join(f"`{name}`" for name in others))
    return "\n" + "\n".join(lines) + "\n\n"


def section(text: str) -> str:
    """What is between the marks."""
    return text.partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Record if nothing is recorded, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="folder", type=Path, help="recordings there are already")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary)
            environment = os.environ | {"KVMDBG_PACKETS": temporary}
            tests = [sys.executable, "-m", "pytest", *LIVE_TESTS]
            subprocess.run(tests, env=environment, check=True)
        before, _, rest = README.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        README.write_text(before + BEGIN + render(collect(folder)) + END + after)


if __name__ == "__main__":
    main()
