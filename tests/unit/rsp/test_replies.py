"""Replies to payloads, read back by an independent decoder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmdbg.addr import Gva, ThreadId
from kvmdbg.rsp.frame import encode_packet
from kvmdbg.rsp.server import replies as r
from kvmdbg.rsp.server.commands.session import Supported
from kvmdbg.rsp.stops import Cause, Exited, Stopped, Terminated, Watch
from kvmdbg.rsp.threadid import ThreadSpec
from tests.support import naive_rsp

PLAIN = r.Negotiated()
MODERN = r.Negotiated(multiprocess=True, error_message=True, causes=frozenset(Cause))
ONE, TWO = ThreadSpec(ThreadId(1)), ThreadSpec(ThreadId(2))


@pytest.mark.parametrize(
    ("reply", "plain", "modern"),
    [
        (r.Ok(), b"OK", b"OK"),
        (r.Empty(), b"", b""),
        (r.Error(14), b"E0e", b"E0e"),
        (r.Error(22, "no such thing"), b"E16", b"E.no such thing"),
        (r.Error(22, "no such thing", shown=True), b"E.no such thing", b"E.no such thing"),
        (r.Error(1, "a*b #1 {$}\n"), b"E01", b"E.axb %1 {S) "),
        (r.Registers((b"\x01\x02", r.Undefined(3))), b"0102xxxxxx", b"0102xxxxxx"),
        (r.Registers((r.Undefined(1), b"\x01", b"\x02")), b"xx0102", b"xx0102"),
        (r.Registers((b"\x01", r.Undefined(1), b"\x02")), b"01xx02", b"01xx02"),
        (r.Memory(b"\x00\xff"), b"00ff", b"00ff"),
        (r.BinaryMemory(b"\x00#"), b"b\x00#", b"b\x00#"),
        (r.Found(None), b"0", b"0"),
        (r.Found(Gva(0x1F)), b"1,1f", b"1,1f"),
        (r.Checksum(0xAB), b"C000000ab", b"C000000ab"),
        (r.FileResult(16), b"F10", b"F10"),
        (r.FileResult(2, b"a;"), b"F2;a;", b"F2;a;"),
        (r.FileResult(0, b""), b"F0;", b"F0;"),
        (r.FileError(13), b"F-1,d", b"F-1,d"),
        (r.PlainText("0x7"), b"0x7", b"0x7"),
        (r.CurrentThreadIs(TWO), b"QC2", b"QCp1.2"),
        (r.Threads((ONE, TWO)), b"m1,2", b"mp1.1,p1.2"),
        (r.Threads(()), b"l", b"l"),
        (r.ObjectPart(b"<x>", last=False), b"m<x>", b"m<x>"),
        (r.ObjectPart(b"", last=True), b"l", b"l"),
        (r.Flag(on=True), b"1", b"1"),
        (r.Flag(on=False), b"0", b"0"),
        (r.VContActions(("c", "s")), b"vCont;c;s", b"vCont;c;s"),
        (r.HexText("µ"), b"c2b5", b"c2b5"),
        (r.Properties({"a": "1", "b": "2"}), b"a:1;b:2;", b"a:1;b:2;"),
        (r.ConsoleOutput("hi\n"), b"O68690a", b"O68690a"),
        (Stopped(5), b"S05", b"S05"),
        (Stopped(5, TWO, cause=Cause.HARDWARE), b"T05thread:2;", b"T05thread:p1.2;hwbreak:;"),
        (
            Stopped(5, ONE, (Watch.ACCESS, Gva(0x1F)), registers={16: b"\x10\x00"}),
            b"T0510:1000;thread:1;awatch:1f;",
            b"T0510:1000;thread:p1.1;awatch:1f;",
        ),
        (Exited(0), b"W00", b"W00;process:1"),
        (Terminated(9), b"X09", b"X09;process:1"),
    ],
)
def test_payloads(reply: r.Reply, plain: bytes, modern: bytes) -> None:
    assert r.encode(reply, PLAIN) == plain
    assert r.encode(reply, MODERN) == modern


def test_errors_as_lldb_reads_them() -> None:
    lldb = r.Negotiated(error_strings=True)
    assert r.encode(r.Error(22, "µ"), lldb) == b"E16;c2b5"
    assert r.encode(r.Error(14), lldb) == b"E0e"


def test_supported() -> None:
    reply = r.SupportedFeatures(frozenset({"multiprocess", "hwbreak"}), 0x10000)
    assert r.encode(reply, PLAIN) == b"PacketSize=10000;hwbreak+;multiprocess+"


def test_only_what_both_know_is_negotiated() -> None:
    server = r.SupportedFeatures(frozenset({"multiprocess", "swbreak"}), 1)
    client = Supported({"multiprocess": "+", "error-message": "+", "swbreak": "-"})
    assert r.Negotiated.between(client, server) == r.Negotiated(multiprocess=True)


@given(st.binary())
def test_binary_objects_survive_an_independent_decoder(data: bytes) -> None:
    wire = encode_packet(r.encode(r.ObjectPart(data, last=True), PLAIN))
    assert naive_rsp.payload(wire) == b"l" + data


@given(st.binary())
def test_memory_survives_an_independent_decoder(data: bytes) -> None:
    wire = encode_packet(r.encode(r.Memory(data), PLAIN))
    assert bytes.fromhex(naive_rsp.payload(wire).decode()) == data


@given(st.text())
def test_texts_survive_an_independent_decoder(text: str) -> None:
    wire = encode_packet(r.encode(r.ConsoleOutput(text), PLAIN))
    assert bytes.fromhex(naive_rsp.payload(wire)[1:].decode()).decode() == text


@given(st.text(min_size=1))
def test_error_texts_need_no_escapes(text: str) -> None:
    wire = encode_packet(r.encode(r.Error(1, text), MODERN))
    assert not set(wire[1:-3]) & set(b"#$}*\n")
