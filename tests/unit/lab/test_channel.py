"""The frames of the lab's channel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.channel import Decoder, Kind, encode

FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=40)), max_size=8)


@given(FRAMES, st.integers(1, 50))
def test_frames_survive_any_split(frames: list[tuple[Kind, bytes]], piece: int) -> None:
    data = b"".join(encode(kind, payload) for kind, payload in frames)
    decoder = Decoder()
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    assert [frame for part in pieces for frame in decoder.feed(part)] == frames


def test_rubbish_is_refused() -> None:
    with pytest.raises(ValueError, match="Kind"):
        list(Decoder().feed(b"?\0\0\0\0"))
