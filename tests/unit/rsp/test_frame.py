"""Framing: any stream, any split, both roles."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp import frame
from kvmdbg.rsp.frame import (
    Ack,
    BadChecksum,
    BadPacket,
    Decoder,
    FrameEvent,
    Garbage,
    Interrupt,
    Nack,
    Notification,
    Packet,
    Role,
)
from tests.support import naive_rsp

ROLES = st.sampled_from(Role)
# Bytes that mean something turn up more often than chance has it.
NOISE = st.lists(
    st.one_of(st.sampled_from([b"$", b"#", b"+", b"-", b"\x03", b"%", b"*", b"}"]), st.binary()),
    max_size=8,
).map(b"".join)
STREAM = st.lists(st.one_of(NOISE, st.binary().map(naive_rsp.packet)), max_size=8).map(b"".join)


def decode(role: Role, *chunks: bytes, limit: int = frame.MAX_PACKET) -> list[FrameEvent]:
    decoder = Decoder(role, limit)
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(STREAM, st.lists(st.integers(min_value=0), max_size=6), ROLES, st.sampled_from([4, 1000]))
def test_any_split_yields_the_same_events(
    stream: bytes, cuts: list[int], role: Role, limit: int
) -> None:
    whole = decode(role, stream, limit=limit)

    assert decode(role, *split(stream, cuts), limit=limit) == whole
    assert decode(role, *(bytes([byte]) for byte in stream), limit=limit) == whole


@given(st.binary(), ROLES, st.booleans())
def test_packets_round_trip(payload: bytes, role: Role, run_lengths: bool) -> None:
    compress = run_lengths and role is Role.CLIENT
    wire = frame.encode_packet(payload, run_lengths=compress)

    assert decode(role, wire) == [Packet(payload)]
    assert naive_rsp.payload(wire) == payload


@given(st.lists(st.tuples(st.sampled_from(b"0x}#*\x03"), st.integers(1, 300))))
def test_run_lengths_round_trip(runs: list[tuple[int, int]]) -> None:
    payload = b"".join(bytes([byte]) * count for byte, count in runs)
    wire = frame.encode_packet(payload, run_lengths=True)

    assert naive_rsp.payload(wire) == payload
    assert decode(Role.CLIENT, wire) == [Packet(payload)]


def test_run_lengths_do_compress() -> None:
    assert frame.encode_packet(bytes(980), run_lengths=True).count(b"*") == 10


def test_a_notification_is_not_taken_for_a_packet() -> None:
    wire = frame.encode_notification(b"Stop:T05#")
    assert wire.startswith(b"%Stop:")
    (event,) = frame.Decoder(frame.Role.CLIENT).feed(wire)
    assert event == frame.Notification(b"Stop:T05#")


@pytest.mark.parametrize("count", range(1, 200))
def test_run_length_counts_are_never_bytes_that_mean_something(count: int) -> None:
    assert not set(frame.compress(b"0" * count)) & set(b"#$+-")


@pytest.mark.parametrize(
    ("raw", "expanded"), [(b"0* ", b"0000"), (b"a**", b"a" * 14), (b"x0* *!", b"x0000" + b"0000")]
)
def test_expand(raw: bytes, expanded: bytes) -> None:
    assert frame.expand(raw) == expanded


@pytest.mark.parametrize("raw", [b"*", b"*!", b"**a", b"a*", b"a*\x1f", b"a*\x80", b"0* *"])
def test_bad_run_lengths(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        frame.expand(raw)


def test_everything_between_packets() -> None:
    stream = b"noise$g#67+\x03-%x$m#6dtail+"

    assert decode(Role.SERVER, stream) == [
        Garbage(5),
        Packet(b"g"),
        Ack(),
        Interrupt(),
        Nack(),
        Garbage(2),
        Packet(b"m"),
        Garbage(4),
        Ack(),
    ]


def test_a_client_sees_notifications_and_no_interrupts() -> None:
    assert decode(Role.CLIENT, b"\x03%Stop:T05#99+") == [
        Garbage(1),
        Notification(b"Stop:T05"),
        Ack(),
    ]


def test_ctrl_c_inside_a_packet_is_data() -> None:
    assert decode(Role.SERVER, naive_rsp.packet(b"X0,1:\x03")) == [Packet(b"X0,1:\x03")]


def test_bad_checksums() -> None:
    assert decode(Role.SERVER, b"$g#68$g#zz$g#6") == [
        BadChecksum(0x67, b"68"),
        BadChecksum(0x67, b"zz"),
    ]


def test_checksums_may_be_in_upper_case() -> None:
    assert decode(Role.SERVER, b"$?z#B9") == [Packet(b"?z")]


def test_a_packet_that_lost_its_end_is_skipped() -> None:
    assert decode(Role.SERVER, b"$abc$g#67") == [Garbage(4), Packet(b"g")]


def test_an_escape_that_escapes_nothing() -> None:
    (event,) = decode(Role.SERVER, b"$}#7d")
    assert isinstance(event, BadPacket)


def test_a_request_may_hold_a_star_and_a_reply_may_not_begin_with_one() -> None:
    assert decode(Role.SERVER, b"$a*!#ac") == [Packet(b"a*!")]
    assert decode(Role.CLIENT, b"$a*!#ac") == [Packet(b"aaaaa")]
    (event,) = decode(Role.CLIENT, b"$*!#4b")
    assert isinstance(event, BadPacket)


@pytest.mark.parametrize("size", [5, 6, 1000])
def test_what_is_too_long_is_refused_and_the_next_is_read(size: int) -> None:
    stream = naive_rsp.packet(b"a" * size) + b"$g#67"

    events = decode(Role.SERVER, stream, limit=4)

    assert isinstance(events[0], BadPacket)
    assert events[1:] == [Packet(b"g")]


def test_the_limit_itself_is_allowed() -> None:
    assert decode(Role.SERVER, naive_rsp.packet(b"abcd"), limit=4) == [Packet(b"abcd")]


def test_memory_is_bounded_by_the_limit() -> None:
    decoder = Decoder(Role.SERVER, 1000)
    decoder.feed(b"$")
    for _ in range(1000):
        decoder.feed(b"a" * 100)
    assert len(decoder._buffer) <= 1100


@pytest.mark.parametrize("pattern", [b"$", b"a", b"%a#00", b"$g#67", b"$a", b"#", b"}*"])
@pytest.mark.parametrize("role", Role)
def test_time_is_linear(pattern: bytes, role: Role) -> None:
    """A quadratic decoder takes minutes for this, a linear one well under a second."""
    stream = pattern * (400_000 // len(pattern))
    start = time.process_time()
    decode(role, stream)
    decode(role, *(stream[i : i + 64] for i in range(0, len(stream), 64)))
    assert time.process_time() - start < 10
