"""The README's table of packets and clients is that of the server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.packets import (
    ANSWERED,
    README,
    collect,
    exchanges,
    names,
    render,
    rows,
    section,
)
from tests.support.recording import Recorded

SECTION = section(README.read_text())
MARKS = {
    name: set(re.findall(r"[●E]", marks))
    for name, marks in re.findall(r"^\| `([^`]+)` \|(.*)\|$", SECTION, re.MULTILINE)
}


def test_the_table_has_the_packets_that_the_server_has() -> None:
    assert list(MARKS) == rows(), "run: make packets"


@pytest.mark.parametrize("row", rows())
def test_every_packet_was_answered_on_a_live_vm(row: str) -> None:
    assert ANSWERED in MARKS.get(row, ())


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        ("g", {"g"}),
        ("m10,20", {"m"}),
        ("X10,2:\\x00a", {"X"}),
        ("vCont?", {"vCont?"}),
        ("vCont;s:p1.1;c:p1.-1", {"vCont;s", "vCont;c"}),
        ("Z3,10,8", {"Z3"}),
        ("qXfer:threads:read::0,1000", {"qXfer:threads:read"}),
        ("vFile:pread:0,40,0", {"vFile:pread"}),
        ("qqemu.sstepbits", {"qqemu.sstepbits"}),
        ("jThreadsInfo", {"jThreadsInfo"}),
        ("qThreadStopInfo1", {"qThreadStopInfo"}),
    ],
)
def test_names(packet: str, expected: set[str]) -> None:
    assert names(packet) == expected


GDB = r"""
w +$qSupported:multiprocess+#77
r +$PacketSize=10000;swbreak+#7f
c monitor clients
w $qRcmd,63#6f
r $O63#aa$OK#9a
w $vCont;c#0f
r <Timeout: 0 seconds>
w \x03
r $T0210:0b\n;thread:p1.1;#6e
End of log
"""
LLDB = """lldb             <  13> send packet: $qHostInfo#9b
lldb             <   4> read packet: $#00
lldb             <  41> send packet: $qXfer:features:read:target.xml:0,ffff#e3
lldb             <9706> read packet: $l<?xml version="1.0"?>
  <architecture>i386:x86-64</architecture>
"""


def test_recordings() -> None:
    assert list(exchanges(GDB)) == [
        ("qSupported:multiprocess+", "PacketSize=10000;swbreak+"),
        ("qRcmd,63", "OK"),
        ("vCont;c", r"T0210:0b\n;thread:p1.1;"),
    ]
    assert [packet for packet, reply in exchanges(LLDB) if reply] == [
        "qXfer:features:read:target.xml:0,ffff"
    ]


def test_the_best_answer_counts(tmp_path: Path) -> None:
    said = (("m1234,8", "E.no"), ("m10,1", "00"), ("m1234,8", "E.no"), ("p99", "E16"), ("j", ""))
    lines = [f"w ${packet}#00\nr ${reply}#00\n" for packet, reply in said]
    (tmp_path / "gdb18.1-1.log").write_text("".join(lines) + "w $k#00\n")
    seen = collect(tmp_path)
    assert seen == {Recorded.GDB_18: {"m": "●", "p": "E", "j": "", "k": "●"}}
    shown = render(seen)
    assert re.search(r"^\| `m` \|[ |]*●[ |]*$", shown, re.MULTILINE)
    assert "* gdb 18: `j`\n" in shown
