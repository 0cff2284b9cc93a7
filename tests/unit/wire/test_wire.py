"""The agent's protocol: every value survives the way there, however the stream is cut."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.wire import messages, structs
from kvmdbg.wire._layout import ffi, lib
from kvmdbg.wire.messages import (
    MESSAGES,
    Adoption,
    Headed,
    Many,
    Message,
    Nothing,
    Number,
    Octets,
    One,
)
from kvmdbg.wire.stream import Frame, FrameDecoder
from kvmdbg.wire.structs import Header, Struct, Type

CDEF = Path(__file__).parents[3] / "cdefs" / "agent.cdef.h"
STRUCTS = [
    kind
    for kind in vars(structs).values()
    if isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct
]
FRAMES = st.builds(
    Frame,
    type=st.integers(0, 2**16 - 1),
    id=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=100),
    status=st.integers(0, 2**31 - 1),
)


def values(kind: type[Struct]) -> st.SearchStrategy[Struct]:
    """Any value of a struct of ours; a number's range is that of its C type."""
    types = {name: field.type for name, field in ffi.typeof(kind.C_TYPE).fields or []}
    hints = get_type_hints(kind)
    return st.builds(kind, **{f.name: _field(hints[f.name], types[f.name]) for f in fields(kind)})


def _field(hint: Any, c_type: Any) -> st.SearchStrategy[Any]:
    if hint is bytes:
        return st.binary(min_size=c_type.length, max_size=c_type.length)
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    bits = 8 * ffi.sizeof(c_type)
    if c_type.cname.startswith("int"):
        return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return st.integers(0, 2**bits - 1)


def carried(payload: Any) -> st.SearchStrategy[Any]:
    """Any value that a kind of payload carries."""
    match payload:
        case Nothing():
            return st.none()
        case Octets():
            return st.binary(max_size=64)
        case Number():
            return st.integers(0, 2**32 - 1)
        case One(kind=kind):
            return values(kind)
        case Many(kind=kind):
            return st.lists(values(kind), max_size=4).map(tuple)
        case Headed(kind=kind):
            return st.tuples(values(kind), st.binary(max_size=64))
        case _:
            return st.builds(
                Adoption,
                st.integers(0, 2**31 - 1),
                st.integers(0, 2**32 - 1),
                carried(Many(structs.Vcpu)),
                carried(Many(structs.Slot)),
            )


def test_every_struct_has_the_compilers_layout() -> None:
    # cffi compares size, fields and offsets with the compiler's when a struct is first looked at.
    declared = {f"struct {name}" for name in ffi.list_types()[1]}
    assert declared == {kind.C_TYPE for kind in STRUCTS}


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_struct_has_a_name_here(kind: type[Struct]) -> None:
    declared = [name for name, _ in ffi.typeof(kind.C_TYPE).fields or []]
    ours = [field.name for field in fields(kind)]
    assert [name for name in declared if name != "zero" or name in ours] == ours


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_no_struct_has_holes(kind: type[Struct]) -> None:
    sizes = [ffi.sizeof(field.type) for _, field in ffi.typeof(kind.C_TYPE).fields or []]
    assert sum(sizes) == kind.sizeof()


def test_every_constant_has_a_name_here() -> None:
    declared = re.findall(r"^enum (agent_\w+) \{", CDEF.read_text(), re.MULTILINE)
    for name in declared:
        words = name.removeprefix("agent_").split("_")
        ours: Iterable[Enum] = getattr(structs, "".join(map(str.capitalize, words)))
        constants = {f"AGENT_{member.name}": member.value for member in ours}
        assert constants == ffi.typeof(f"enum {name}").relements


@pytest.mark.parametrize("message", MESSAGES.values(), ids=lambda message: message.type.name)
@settings(deadline=None)  # the strategies of the bigger messages are slow to make
@given(data=st.data())
def test_a_message_survives_the_way(message: Message[Any, Any], data: st.DataObject) -> None:
    request = data.draw(carried(message.request))
    assert message.decode_request(message.request.encode(request)) == request
    answer = data.draw(carried(message.answer))
    assert message.decode_answer(message.answer.encode(answer)) == answer


@pytest.mark.parametrize("message", MESSAGES.values(), ids=lambda message: message.type.name)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(message: Message[Any, Any], data: bytes) -> None:
    for decode in (message.decode_request, message.decode_answer):
        with contextlib.suppress(RemoteProtocolError):
            decode(data)


def test_every_type_has_a_message() -> None:
    assert set(MESSAGES) == set(Type)


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (messages.HELLO.decode_request, b"1234567"),
        (messages.HELLO.decode_request, b"123456789"),
        (messages.HOLD.decode_answer, b"1"),
        (messages.STOPS.decode_answer, bytes(structs.Stop.sizeof() + 1)),
        (messages.REMOVE.decode_request, b"12345"),
        (messages.INSERT.decode_request, b"\xff" * structs.PointRequest.sizeof()),
        (messages.ADOPT.decode_request, structs.AdoptHead(3, 4096, 1, 0).encode()),
        (
            messages.ADOPT.decode_request,
            structs.AdoptHead(3, 4096, 0, 0).encode() + bytes(structs.Slot.sizeof()),
        ),
    ],
)
def test_a_payload_of_another_shape_is_refused(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data)


@given(st.lists(FRAMES, max_size=6), st.data())
def test_any_split_of_the_stream_gives_the_same_frames(
    frames: list[Frame], data: st.DataObject
) -> None:
    stream = b"".join(frame.encode() for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    decoder = FrameDecoder()
    found: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += decoder.feed(stream[start:end])
    assert found == frames


@pytest.mark.parametrize(
    "header",
    [
        Header(lib.AGENT_MAX_PAYLOAD + 1, Type.READ, 0, 1, 0),
        Header(0, Type.READ, 1, 1, 0),
        Header(0, Type.READ, 0, 1, -1),
    ],
)
def test_a_header_that_cannot_be_one_is_refused(header: Header) -> None:
    with pytest.raises(RemoteProtocolError, match="header"):
        list(FrameDecoder().feed(header.encode()))


def test_a_payload_that_is_too_long_is_not_sent() -> None:
    Frame(Type.WRITE, 1, bytes(lib.AGENT_MAX_PAYLOAD)).encode()
    with pytest.raises(ValueError, match="1052673"):
        Frame(Type.WRITE, 1, bytes(lib.AGENT_MAX_PAYLOAD + 1)).encode()
