"""What real peers send, damaged; and what must hold for the RSP cores whatever they are sent.

Anything but a RemoteProtocolError is a bug, and so is an outcome that depends on how the bytes were
cut.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.images import user_cache
from kvmdbg.rsp.client.session import ClientSession
from kvmdbg.rsp.frame import Decoder, FrameEvent, Role
from kvmdbg.rsp.server.commands import Command
from kvmdbg.rsp.server.commands.resume import ResumeThread, RunBack, VCont
from kvmdbg.rsp.server.replies import Ok
from kvmdbg.rsp.server.session import InterruptRequest, ServerSession
from kvmdbg.rsp.stops import Stopped
from tests.support.naive_rsp import packet

FOUND = Path(__file__).with_name("found")
"""What has once been found: ``*.bin``, one stream each."""

AT_ONCE = 1000
"""Streams that hypothesis draws between two looks at the clock."""

REQUESTS = [
    packet(payload)
    for payload in (
        b"qSupported:multiprocess+;swbreak+;xmlRegisters=i386", b"vMustReplyEmpty", b"?", b"g",
        b"QStartNoAckMode", b"Hgp0.0", b"qXfer:features:read:target.xml:0,1000", b"qfThreadInfo",
        b"mffffffff81000000,40", b"X1000,4:\x03#$}", b"Z0,1000,1;X3,220a27;cmds:0,X1,27", b"p10",
        b"vCont;s:p1.1;c:p1.-1", b"vCont;c", b"D;1", b"qRcmd,68656c70", b"P10=0000000000000000",
        b"x1000,40", b"qSearch:memory:1000;40;a\x00}#", b"qCRC:1000,40", b"vFile:open:2f61,0,1c0",
        b"vFile:pread:0,40,0", b"vCont;r10,20:p1.1;t:p1.-1", b"Qqemu.sstep=0x7", b"QNonStop:1",
        b"bs", b"bc", b"c", b"s1000", b"C05", b"vCont?", b"vAttach;1", b"vKill;1", b"Hc-1", b"T1",
        b"qXfer:exec-file:read:1:0,40", b"qXfer:memory-map:read::0,40", b"vFile:setfs:0", b"qC",
        b"vFile:fstat:0", b"vFile:close:0", b"Z2,1000,8", b"z0,1000,1", b"Qqemu.PhyMemMode:1",
        b"qqemu.PhyMemMode", b"qqemu.sstepbits", b"qThreadExtraInfo,p1.1", b"qSymbol::", b"G00",
        b"M1000,2:beef", b"qAttached:1", b"qTStatus", b"qOffsets", b"vCont;C05:p1.1;t", b"k",
        b"QCatchSyscalls:1;1;2", b"QThreadEvents:1", b"qXfer:threads:read::0,40", b"R00", b"!",
        b"qHostInfo", b"qProcessInfo", b"QEnableErrorStrings", b"qWatchpointSupportInfo:",
        b"vStopped", b"vCtrlC", b"vCont;t", b"vCont;c:p1.2", b"QNonStop:0",
        # lengths and addresses at their ends, and lengths that are not those of the data
        b"Z0,ffffffffffffffff,1", b"Z1,0,0", b"Z2,1000,ffffffffffffffff",
        b"z2,1000,ffffffffffffffff", b"Z2,1000,0", b"Z3,ffffffffffffffff,8",
        b"Z4,fffffffffffffff8,10000",
        b"m0,ffffffff", b"mffffffffffffffff,2", b"m0,0", b"m10000000000000000,1",
        b"xffffffffffffffff,ffffffff",
        b"X1000,ffffffffffffffff:a", b"X1000,0:abc", b"X1000,4:a", b"Mffffffffffffffff,4:00000000",
        b"M1000,ffffffff:00", b"M1000,0:", b"M1000,2:00", b"qCRC:0,ffffffffffff", b"qCRC:0,0",
        b"qSearch:memory:0;ffffffffffffffff;aa", b"qSearch:memory:ffffffffffffffff;0;",
        b"vFile:pread:0,ffffffffffffffff,0", b"vFile:pread:0,1,ffffffffffffffff",
        b"vFile:pread:7fffffffffffffff,1,0", b"vFile:close:ffffffffffffffff",
        b"qXfer:features:read:target.xml:ffffffffffffffff,ffffffffffffffff",
        b"qXfer:memory-map:read::ffffffffffffffff,1", b"qXfer:threads:read::0,0",
        b"pffffffffffffffff", b"P10=" + b"ff" * 600, b"Hgpffffffff.ffffffff",
        b"vCont;rffffffffffffffff,0:p1.1", b"vCont;s:p1.ffffffff", b"cffffffffffffffff",
    )
]  # fmt: skip
REQUESTS += [
    packet(b"qRcmd," + line.encode().hex().encode())
    for line in (
        "", " ", "help " + "x" * 2000, "help help", "clients 1 2", "drive drive", "breakpoints -1",
        "watch", "watch 0 0", "watch 0xffffffffffffffff 8 rw", "watch 0x1000 99999999999999999999",
        "watch 0x1000 8 if", "watch 0x1000 8 rw if value == *0", "watch 0x1000 4 r if 1 / 0",
        "watch 0x1000 8 if " + "(" * 300, "watch -1 -1", "unwatch", "unwatch 0x1000", "unwatch x",
        "info", "info registers -a", "info system-registers", "info mem", "info nothing",
        "xp /1gx 0xffffffffffffffff", "x /1gx 0", "p $rip", "p 1/0", "cpu 99", "\xff\x00\n",
        "qmp", "qmp {", "qmp []", 'qmp {"execute": 1}', 'qmp {"execute": "query-status"}',
        'qmp query-status {"no": "such"}', 'qmp {"execute": "stop", "arguments": []}', "qmp cont",
        "qmp " + "[" * 1000, "qmp x " + "[" * 1000,
        "qmp human-monitor-command {}", "cont", "system_reset now",
    )
]  # fmt: skip
"""Of the monitor's lines none ends the VM."""
REPLIES = [
    packet(payload)
    for payload in (
        b"OK", b"E01", b"", b"T05thread:p01.02;watch:ffff;", b"T05replaylog:begin;", b"T0510:0011;",
        b"W00", b"O6869", b"mp1.1,p1.2", b"l<target/>#$}*", b"PacketSize=1000;multiprocess+",
        b"00" * 300,
    )
] + [b"$0*~0*~#5e", b"%Stop:T05#99"]  # fmt: skip
LOOSE = [b"+", b"-", b"\x03", b"+" * 40, b"junk", b"$", b"#", b"}", b"*"]


def stream(rng: random.Random, corpus: list[bytes]) -> bytes:
    """A conversation, damaged here and there."""
    data = bytearray(b"".join(rng.choices(corpus + LOOSE, k=rng.randint(1, 20))))
    for _ in range(rng.randint(0, 6)):
        at = rng.randrange(len(data) + 1)
        end = at + rng.randint(0, 4)
        data[at:end] = rng.choice([*LOOSE, rng.randbytes(rng.randint(0, 8))])
    return bytes(data)


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """``data``, cut."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randint(0, 9)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def decode(role: Role, chunks: list[bytes]) -> list[FrameEvent]:
    """The events of a stream."""
    decoder = Decoder(role, 200)
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def serve(chunks: list[bytes]) -> list[object]:
    """What a server that answers everything makes of a stream."""
    session = ServerSession(200)
    seen: list[object] = []
    for chunk in chunks:
        events = session.receive_data(chunk)
        while events:
            seen += events
            match events[-1]:
                case VCont() | ResumeThread() | RunBack():
                    session.resume()
                case Command():
                    session.send(Ok())
                case InterruptRequest():
                    session.send(Stopped(2))
            events = session.receive_data(b"")
    return seen


def ask(chunks: list[bytes]) -> list[object]:
    """What a client that asks when it may makes of a stream."""
    session = ClientSession(200)
    seen: list[object] = []
    for number, chunk in enumerate(chunks):
        if session.state.name == "IDLE":
            session.resume(b"vCont;c") if number % 2 else session.request(b"g")
        seen += session.receive_data(chunk)
    return seen


def tolerate(run: Callable[[list[bytes]], list[object]], chunks: list[bytes]) -> object:
    """The outcome, of which the peer's fault is one."""
    try:
        return run(chunks)
    except RemoteProtocolError as error:
        return str(error)


def check(rng: random.Random, requests: bytes, replies: bytes) -> None:
    """Feed both cores, in one piece and in random ones. What it raises is a bug."""
    for role, data in ((Role.SERVER, requests), (Role.CLIENT, replies)):
        assert decode(role, pieces(rng, data)) == decode(role, [data]), data
    assert tolerate(serve, pieces(rng, requests)) == tolerate(serve, [requests]), requests
    tolerate(ask, pieces(rng, replies))


def kept(name: str) -> Path:
    """A folder in which a run leaves to later ones what it found: coverage, and failures."""
    folder = user_cache() / "fuzz" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def drawn(one: Callable[[random.Random], None], seed: int, name: str) -> None:
    """Try it with what hypothesis draws, :data:`AT_ONCE` times; what it finds it makes small, and
    tries first in the next run of that ``name``."""

    @settings(
        max_examples=AT_ONCE,
        deadline=None,
        database=DirectoryBasedExampleDatabase(kept(name)),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def each(rng: random.Random) -> None:
        one(rng)

    hypothesis.seed(seed)(each)()


def known() -> list[bytes]:
    """What has once been found."""
    return [path.read_bytes() for path in sorted(FOUND.glob("*.bin"))]


def arguments(doc: str | None, *more: str) -> argparse.Namespace:
    """``seconds``, ``seed``, and options that take a word, of the command line; says the first."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    for option in more:
        parser.add_argument(option)
    parser.add_argument("seconds", type=float, nargs="?", default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    chosen = parser.parse_args()
    print(f"{chosen.seconds:g} s, seed {chosen.seed}", flush=True)
    return chosen
