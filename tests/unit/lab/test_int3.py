"""The int3 fix changes exactly one byte, of exactly the code it knows."""

import pytest

from tests.lab.errors import LabError
from tests.lab.int3 import fix_int3

CODE = bytes.fromhex("90 31d2 be75000000 e8 01020304")


def test_one_byte_is_changed() -> None:
    assert fix_int3(b"before" + CODE) == b"before" + bytes.fromhex("90 31d2 be43000000 e8 01020304")


@pytest.mark.parametrize("emulator", [b"", CODE[:6], CODE * 2, fix_int3(CODE)])
def test_anything_else_is_refused(emulator: bytes) -> None:
    with pytest.raises(LabError, match="int3 fix does not fit"):
        fix_int3(emulator)
