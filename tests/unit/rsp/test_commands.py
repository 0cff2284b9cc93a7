"""Payloads to commands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmdbg.addr import Gva, ThreadId
from kvmdbg.rsp.server.commands import (
    PARSERS,
    Command,
    MalformedCommand,
    UnknownCommand,
    breakpoints,
    files,
    lldb,
    memory,
    monitor,
    parse,
    registers,
    resume,
    session,
    stepping,
    threads,
    xfer,
)
from kvmdbg.rsp.threadid import ALL, ThreadSpec


def thread(tid: int, pid: int | None = None) -> ThreadSpec:
    return ThreadSpec(ThreadId(tid), pid)


K = resume.ResumeKind

GOOD: list[tuple[bytes, Command]] = [
    (b"!", session.ExtendedMode()),
    (b"?", resume.StopReasonQuery()),
    (b"c", resume.ResumeThread(step=False)),
    (b"cffffffff81000000", resume.ResumeThread(False, None, Gva(0xFFFFFFFF81000000))),
    (b"C05", resume.ResumeThread(False, 5)),
    (b"C05;1000", resume.ResumeThread(False, 5, Gva(0x1000))),
    (b"s", resume.ResumeThread(step=True)),
    (b"S0b;10", resume.ResumeThread(True, 11, Gva(0x10))),
    (b"bs", resume.RunBack(step=True)),
    (b"bc", resume.RunBack(step=False)),
    (b"D", session.Detach()),
    (b"D;1", session.Detach(1)),
    (b"g", registers.ReadRegisters()),
    (b"G00FF", registers.WriteRegisters(b"\x00\xff")),
    (b"p1f", registers.ReadRegister(0x1F)),
    (b"P10=0011", registers.WriteRegister(0x10, b"\x00\x11")),
    (b"Hg0", threads.SelectThread(threads.Purpose.ACCESS, thread(0))),
    (b"Hc-1", threads.SelectThread(threads.Purpose.RESUME, thread(-1))),
    (b"Hgp1.2", threads.SelectThread(threads.Purpose.ACCESS, thread(2, 1))),
    (b"Tp1.-1", threads.ThreadAlive(thread(-1, 1))),
    (b"T2", threads.ThreadAlive(thread(2))),
    (b"k", session.Kill()),
    (b"vKill;1", session.Kill(1)),
    (b"vAttach;a", session.Attach(10)),
    (b"R00", session.Restart()),
    (b"mffffffff81000000,7d0", memory.ReadMemory(Gva(0xFFFFFFFF81000000), 2000)),
    (b"M10,2:beef", memory.WriteMemory(Gva(0x10), b"\xbe\xef")),
    (b"X10,3:\x00:,", memory.WriteMemory(Gva(0x10), b"\x00:,")),
    (b"X0,0:", memory.WriteMemory(Gva(0), b"")),
    (b"x10,ff", memory.ReadBinary(Gva(0x10), 255)),
    (b"qSearch:memory:10;ff;a;:\x00", memory.SearchMemory(Gva(0x10), 255, b"a;:\x00")),
    (b"qCRC:10,ff", memory.ChecksumMemory(Gva(0x10), 255)),
    (b"Qqemu.PhyMemMode:1", memory.PhysicalMode(physical=True)),
    (b"qqemu.PhyMemMode", memory.PhysicalModeQuery()),
    (b"qqemu.sstepbits", stepping.StepBitsQuery()),
    (b"Qqemu.sstepbits", stepping.StepBitsQuery()),
    (b"qqemu.sstep", stepping.StepModeQuery()),
    (b"Qqemu.sstep=7", stepping.StepMode(7)),
    (b"Qqemu.sstep=0x5", stepping.StepMode(5)),
    (b"vFile:setfs:0", files.SetFilesystem(0)),
    (b"vFile:open:2f612c62,0,1c0", files.OpenFile("/a,b", 0, 0o700)),
    (b"vFile:pread:3,1000,20", files.ReadFile(3, 0x1000, 0x20)),
    (b"vFile:fstat:3", files.FileStatus(3)),
    (b"vFile:close:3", files.CloseFile(3)),
    (b"vFile:unlink:2f61", files.OtherFileOperation("unlink")),
    (b"qHostInfo", lldb.HostInfo()),
    (b"qProcessInfo", lldb.ProcessInfo()),
    (b"qWatchpointSupportInfo:", lldb.WatchpointSupport()),
    (b"QEnableErrorStrings", lldb.EnableErrorStrings()),
    (b"QNonStop:1", session.NonStop(wanted=True)),
    (b"QCatchSyscalls:1;3;a", session.CatchSyscalls(True, (3, 10))),
    (b"QCatchSyscalls:0", session.CatchSyscalls(wanted=False)),
    (b"QThreadEvents:1", threads.ThreadEvents(wanted=True)),
    (b"qAttached", session.Attached()),
    (b"qAttached:1", session.Attached()),
    (b"qC", threads.CurrentThread()),
    (b"qfThreadInfo", threads.FirstThreads()),
    (b"qsThreadInfo", threads.NextThreads()),
    (b"qThreadExtraInfo,p1.1", threads.ThreadExtraInfo(thread(1, 1))),
    (b"qOffsets", session.Offsets()),
    (b"qRcmd,696e666f", monitor.Monitor("info")),
    (b"qSymbol::", session.SymbolLookup("")),
    (b"qSymbol:1f:6d61696e", session.SymbolLookup("main", 0x1F)),
    (b"qTStatus", session.TraceStatus()),
    (b"QStartNoAckMode", session.StartNoAckMode()),
    (b"vCont?", resume.VContQuery()),
    (b"vCont;c", resume.VCont((resume.ResumeAction(K.CONTINUE),))),
    (
        b"vCont;s:p1.2;c",
        resume.VCont((resume.ResumeAction(K.STEP, thread(2, 1)), resume.ResumeAction(K.CONTINUE))),
    ),
    (b"vCont;C05:2", resume.VCont((resume.ResumeAction(K.CONTINUE, thread(2), 5),))),
    (
        b"vCont;r10,20:p1.1;t:p1.-1",
        resume.VCont(
            (
                resume.ResumeAction(K.RANGE_STEP, thread(1, 1), None, (Gva(0x10), Gva(0x20))),
                resume.ResumeAction(K.STOP, thread(-1, 1)),
            )
        ),
    ),
    (b"vMustReplyEmpty", session.MustReplyEmpty()),
    (b"vStopped", resume.NextStop()),
    (b"vCtrlC", resume.StopAll()),
    (b"Z0,1000,1", breakpoints.InsertBreakpoint(0, Gva(0x1000), 1)),
    (
        b"Z1,10,1;X2,220aX1,27;cmds:1,X1,0b",
        breakpoints.InsertBreakpoint(1, Gva(16), 1, (b"\x22\x0a", b"\x27"), (b"\x0b",), True),
    ),
    (b"z4,10,8", breakpoints.RemoveBreakpoint(4, Gva(16), 8)),
    (b"qXfer:features:read:target.xml:0,ffb", xfer.ReadObject("features", "target.xml", 0, 4091)),
    (b"qXfer:threads:read::10,20", xfer.ReadObject("threads", "", 16, 32)),
    (b"qXfer:spu:write:a:0:\x00:", xfer.WriteObject("spu", "a", 0, b"\x00:")),
]

BAD = [
    b"b", b"bx", b"bs1",
    b"?x", b"cxyz", b"C", b"C05x", b"G0", b"Gzz", b"p", b"p1x", b"P1", b"P1=0", b"Hx1", b"H",
    b"Hg", b"Hg1x", b"T", b"Tp", b"Tp1.", b"m", b"m1", b"m1,", b"m1,1,", b"m-1,1", b"m0x1,1",
    b"m11111111111111111,1", b"M1,2:ff", b"M1,1", b"X1,1:", b"X1,0:a", b"vKill", b"vAttach;",
    b"D;", b"vCont", b"vCont;", b"vContx", b"vCont;x", b"vCont;s:", b"vCont;r1", b"Z0", b"Z5,1,1",
    b"Z0,1", b"Z0,1,1;", b"Z0,1,1;X2,00", b"Z0,1,1;Xzz", b"Z0,1,1;cmds:1", b"z0,1,1;X1,00",
    b"qXfer", b"qXfer:features:read", b"qXfer:f:read:a:0", b"qXfer:f:eat:a:0,1", b"qXfer:\xff:",
    b"qRcmd", b"qRcmd,0", b"qThreadExtraInfo", b"qC1", b"qSymbol", b"qfThreadInfo,",
    b"x1", b"x1,1,", b"qSearch:memory:1;1;", b"qSearch:memory:1,1;a", b"qSearch:registers:1;1;a",
    b"qCRC:0", b"qCRC", b"Qqemu.sstep7", b"Qqemu.sstep=", b"qqemu.sstepx", b"vFile", b"vFile:open",
    b"vFile:open:2f", b"vFile:open:2,0,0", b"vFile:pread:1,2", b"vFile:close:", b"vFile:close:1x",
    b"QNonStop", b"QNonStop:", b"QThreadEvents:1;", b"QCatchSyscalls:1;", b"QCatchSyscalls:1,2",
    b"vStopped:", b"vCtrlC;1", b"qHostInfo:", b"qProcessInfo1", b"QEnableErrorStrings:1",
    b"qWatchpointSupportInfo", b"qWatchpointSupportInfo:1",
]  # fmt: skip


@pytest.mark.parametrize(("payload", "command"), GOOD)
def test_good(payload: bytes, command: Command) -> None:
    assert parse(payload) == command


@pytest.mark.parametrize("payload", BAD)
def test_malformed(payload: bytes) -> None:
    command = parse(payload)
    if payload in (b"vContx", b"qqemu.sstepx"):
        assert command == UnknownCommand(payload)
    else:
        assert isinstance(command, MalformedCommand)
        assert command.reason


def test_every_packet_of_the_table_is_tested() -> None:
    names = {name for payload, _ in GOOD for name in PARSERS if payload.startswith(name)}
    assert names == set(PARSERS) - {b"qSupported"}  # has a test of its own


@pytest.mark.parametrize(
    "payload", [b"", b"y", b"\xff", b"vRun;", b"qMemTags:0,1", b"QPassSignals:", b"jThreads"]
)
def test_unknown(payload: bytes) -> None:
    assert parse(payload) == UnknownCommand(payload)


def test_supported() -> None:
    command = parse(b"qSupported:multiprocess+;xmlRegisters=i386;swbreak-;weird;x?")
    assert isinstance(command, session.Supported)
    assert command.features == {
        "multiprocess": "+",
        "xmlRegisters": "i386",
        "swbreak": "-",
        "x": "?",
    }
    assert command.has("multiprocess")
    assert not command.has("swbreak")


def test_thread_ids_without_a_thread_mean_all() -> None:
    assert parse(b"Tp1") == threads.ThreadAlive(thread(ALL, 1))


@given(st.binary())
def test_no_bytes_raise(payload: bytes) -> None:
    assert isinstance(parse(payload), Command)


@given(
    st.sampled_from(GOOD),
    st.integers(min_value=0),
    st.one_of(st.binary(max_size=4), st.just(b":"), st.just(b",")),
    st.integers(min_value=0, max_value=8),
)
def test_no_mutation_raises(
    good: tuple[bytes, Command], at: int, insertion: bytes, delete: int
) -> None:
    payload = good[0]
    at %= len(payload) + 1
    assert isinstance(parse(payload[:at] + insertion + payload[at + delete :]), Command)
