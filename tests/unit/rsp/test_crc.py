"""The checksum of qCRC, beside one computed bit by bit."""

from hypothesis import given
from hypothesis import strategies as st

from kvmdbg.rsp import crc


def slowly(data: bytes) -> int:
    """The definition."""
    value = 0xFFFF_FFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C1_1DB7 if value & 0x8000_0000 else 0)
            value &= 0xFFFF_FFFF
    return value


def test_a_known_checksum() -> None:
    # The check value of CRC-32/MPEG-2 in catalogues of CRCs.
    assert crc.result(crc.update(0, b"123456789")) == 0x0376E6E7


@given(st.lists(st.binary()))
def test_pieces_and_bits_agree(pieces: list[bytes]) -> None:
    value = 0
    for piece in pieces:
        value = crc.update(value, piece)
    assert crc.result(value) == slowly(b"".join(pieces))
