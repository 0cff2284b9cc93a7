"""The target descriptions, letter by letter: what clients see changes only on purpose.

After a change that is meant: ``python -m tests.unit.arch.test_descriptions`` writes them anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmdbg.arch import ARCHITECTURES

FOLDER = Path(__file__).with_name("descriptions")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_description_is_as_it_was(name: str) -> None:
    assert ARCHITECTURES[name].target_xml == (FOLDER / f"{name}.xml").read_text()


if __name__ == "__main__":
    for name, arch in ARCHITECTURES.items():
        (FOLDER / f"{name}.xml").write_text(arch.target_xml)
