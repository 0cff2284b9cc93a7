"""The table is complete, and qSupported follows from it."""

import inspect
import typing
from pathlib import Path

from kvmdbg.rsp.server.commands import PARSERS, Command
from kvmdbg.rsp.server.commands.files import OtherFileOperation
from kvmdbg.rsp.server.commands.session import MustReplyEmpty, Offsets, SymbolLookup, TraceStatus
from kvmdbg.rsp.server.commands.xfer import WriteObject
from kvmdbg.server.table import TABLE
from tests.support.rsp_peer import RspPeer

from .conftest import FakeHost

EMPTY_ON_PURPOSE = {
    *(MustReplyEmpty, Offsets, OtherFileOperation, SymbolLookup, TraceStatus, WriteObject),
}


def parsed() -> set[type[Command]]:
    """Every class of command that a parser returns."""
    found: set[type[Command]] = set()
    for parser in PARSERS.values():
        result = inspect.get_annotations(parser, eval_str=True)["return"]
        found |= set(typing.get_args(result) or (result,))
    return found


def test_every_command_has_a_handler_or_is_left_out_on_purpose() -> None:
    handled = [entry.command for entry in TABLE]
    assert len(handled) == len(set(handled))
    assert set(handled) == parsed() - EMPTY_ON_PURPOSE


async def test_what_is_left_out_gets_the_empty_reply(gdb: RspPeer) -> None:
    for payload in (b"vMustReplyEmpty", b"qOffsets", b"qSymbol::", b"qTStatus", b"yadda", b""):
        assert await gdb.ask(payload) == b""


async def test_supported(peer: RspPeer) -> None:
    reply = await peer.ask(b"qSupported:multiprocess+")
    assert reply == (
        b"PacketSize=10000;QCatchSyscalls+;QNonStop+;QStartNoAckMode+;QThreadEvents+;"
        b"binary-upload+;error-message+;hwbreak+;multiprocess+;qXfer:features:read+;"
        b"qXfer:memory-map:read+;qXfer:threads:read+;swbreak+;vContSupported+"
    )


async def test_a_symbol_file_is_offered(peer: RspPeer, host: FakeHost) -> None:
    assert await peer.ask(b"vFile:setfs:0") == b""
    assert await peer.ask(b"qXfer:exec-file:read:1:0,10") == b""
    host.symbol_file = Path("/vmlinux")
    assert b";qXfer:exec-file:read+;" in await peer.ask(b"qSupported")


async def test_an_absent_capability_is_not_announced(peer: RspPeer, host: FakeHost) -> None:
    host.fake.engine.breakpoints.kinds = frozenset()
    assert b"break" not in await peer.ask(b"qSupported")
    assert await peer.ask(b"Z0,1000,1") == b""
    assert await peer.ask(b"z0,1000,1") == b""


async def test_the_way_back_is_offered_in_a_replay_only(peer: RspPeer, host: FakeHost) -> None:
    assert b"Reverse" not in await peer.ask(b"qSupported")
    host.fake.engine.execution.replayed = True
    features = await peer.ask(b"qSupported")
    assert b";ReverseContinue+;ReverseStep+;" in b";" + features
