"""What becomes of a booted VM when a script that uses it fails."""

from __future__ import annotations

import pytest

import kvmdbg
from tests.support import command, vms


async def test_an_exception_in_the_block_is_an_orderly_leave() -> None:
    name = command.fresh_name()
    with pytest.raises(ValueError, match="boom"):
        async with kvmdbg.open("demo", instance=name):
            raise ValueError("boom")
    await vms.wait_ended(name)
