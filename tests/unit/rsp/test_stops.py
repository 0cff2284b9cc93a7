"""Stop replies, written and read."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmdbg.addr import Gva, ThreadId
from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.stops import (
    Cause,
    Exited,
    HistoryEdge,
    Stopped,
    StopReply,
    Terminated,
    Watch,
    encode_stop,
    is_stop,
    parse_stop,
)
from kvmdbg.rsp.threadid import ThreadSpec

BYTE = st.integers(0, 255)
THREADS = st.builds(ThreadSpec, st.integers(-1, 99).map(ThreadId), st.just(1))
STOPS: st.SearchStrategy[StopReply] = st.one_of(
    st.builds(Exited, BYTE, st.just(1)),
    st.builds(Terminated, BYTE, st.just(1)),
    st.builds(
        Stopped,
        BYTE,
        st.one_of(st.none(), THREADS),
        st.one_of(
            st.none(),
            st.tuples(st.sampled_from(Watch), st.integers(0, 2**64 - 1).map(Gva)),
        ),
        st.one_of(st.none(), st.sampled_from(Cause)),
        st.dictionaries(st.integers(0, 0xFFFF), st.binary(max_size=32)),
        st.one_of(st.none(), st.sampled_from(HistoryEdge)),
    ),
)


@given(STOPS)
def test_round_trip(stop: StopReply) -> None:
    payload = encode_stop(stop, multiprocess=True)
    assert is_stop(payload)
    assert parse_stop(payload) == stop


def test_as_qemu_writes_them() -> None:
    assert parse_stop(b"T05thread:p01.02;") == Stopped(5, ThreadSpec(ThreadId(2), 1))
    assert parse_stop(b"T05thread:01;watch:ffffffff82a0b0c0;") == Stopped(
        5, ThreadSpec(ThreadId(1)), (Watch.WRITE, Gva(0xFFFFFFFF82A0B0C0))
    )
    assert parse_stop(b"W00") == Exited(0)


def test_unknown_names_and_unavailable_registers_are_ignored() -> None:
    assert parse_stop(b"T05core:1;10:xxxx;library:;") == Stopped(5)


@pytest.mark.parametrize(
    "payload", [b"", b"S", b"S5", b"S055", b"T0", b"T05thread", b"T05thread:1", b"W", b"OK", b"Wx"]
)
def test_malformed(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_stop(payload)


@given(st.one_of(st.binary(), st.binary().map(lambda tail: b"T05" + tail)))
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        parse_stop(payload)
