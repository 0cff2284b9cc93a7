"""The fixes of the outer QEMU change exactly their bytes, of exactly the code they know."""

import pytest

from tests.lab.errors import LabError
from tests.lab.outer import fix_emulator

INT3 = bytes.fromhex("90 31d2 be75000000 e8 01020304")
RF = bytes.fromhex("4183fe12 0f863ef1ffff c644244001 e947f1ffff")


def test_only_their_bytes_are_changed() -> None:
    assert fix_emulator(RF + INT3 + RF) == b"".join(
        bytes.fromhex(code)
        for code in (
            "4183fe12 0f863ef1ffff c644244000 e947f1ffff",
            "90 31d2 be43000000 e8 01020304",
            "4183fe12 0f863ef1ffff c644244000 e947f1ffff",
        )
    )


@pytest.mark.parametrize(
    ("emulator", "name"),
    [
        (b"", "int3"),
        (INT3[:6] + RF * 2, "int3"),
        (INT3 * 2 + RF * 2, "int3"),
        (INT3 + RF, "RF"),
        (INT3 + RF * 3, "RF"),
        (fix_emulator(INT3 + RF * 2), "int3"),
    ],
)
def test_anything_else_is_refused(emulator: bytes, name: str) -> None:
    with pytest.raises(LabError, match=f"the {name} fix does not fit this QEMU: .* not "):
        fix_emulator(emulator)
