"""ARCHITECTURE.md shows what the tables say, and names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmdbg.rsp.diagram import diagrams
from kvmdbg.target.diagram import run_states

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()


@pytest.mark.parametrize("title", list(diagrams()))
def test_the_diagrams_are_the_tables(title: str) -> None:
    expected = f"**{title}**\n\n```mermaid\n{diagrams()[title]}```\n"
    assert expected in TEXT, "run: python -m kvmdbg.rsp.diagram"


def test_the_run_states_are_the_table() -> None:
    assert run_states() in TEXT, "run: python -m kvmdbg.target.diagram"


def test_every_package_is_described() -> None:
    packages = {path.parent.name for path in (ROOT / "kvmdbg").glob("*/__init__.py")}
    described = set(re.findall(r"^  (\w+)/", TEXT, re.MULTILINE))
    assert packages <= described, packages - described
