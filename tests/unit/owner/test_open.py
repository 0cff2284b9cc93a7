"""Coming to a VM whose owner is being killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvmdbg.errors import OwnerError
from kvmdbg.owner.open import _connect_running
from kvmdbg.owner.protocol import Role


def runtime_where(owned: Iterator[bool], folder: Path) -> Any:
    """A runtime folder whose owner does not listen."""
    return SimpleNamespace(
        is_owned=lambda process: next(owned),
        owner=lambda process: SimpleNamespace(control=folder / "control.sock"),
    )


FOUND: Any = SimpleNamespace(process=None)


async def test_an_owner_killed_just_now_is_none(tmp_path: Path) -> None:
    runtime = runtime_where(iter([True, False]), tmp_path)
    assert await _connect_running(runtime, FOUND, "api", Role.USER) is None


async def test_an_owner_that_does_not_answer_is_told(tmp_path: Path) -> None:
    runtime = runtime_where(iter([True, True]), tmp_path)
    with pytest.raises(OwnerError, match="does not answer"):
        await _connect_running(runtime, FOUND, "api", Role.USER)
