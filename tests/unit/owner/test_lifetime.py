"""When an owner ends: the table of kvmdbg.owner.lifetime, row by row."""

from __future__ import annotations

import asyncio

import pytest

from kvmdbg.owner import lifetime
from kvmdbg.owner.lifetime import End, Lifetime
from kvmdbg.owner.protocol import ClientInfo

ALICE, BOB = ClientInfo("gdb-1"), ClientInfo("cli-2")


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "GRACE", 0.02)


def new(*, booted: bool = True, keep: bool = False, orphan_timeout: float = 60.0) -> Lifetime:
    return Lifetime(booted=booted, keep=keep, orphan_timeout=orphan_timeout)


async def ends(subject: Lifetime) -> End | None:
    """How it ends within a short while; None if it goes on."""
    try:
        return await asyncio.wait_for(subject.wait_end(), 0.2)
    except TimeoutError:
        return None


async def test_a_booted_vm_ends_after_its_last_orderly_client() -> None:
    subject = new()
    subject.joined(ALICE)
    subject.joined(BOB)
    subject.left(ALICE.id, orderly=True)
    assert await ends(subject) is None
    subject.left(BOB.id, orderly=True)
    assert await ends(subject) is End.QUIT


async def test_a_killed_client_never_ends_the_vm() -> None:
    subject = new()
    subject.joined(ALICE)
    subject.left(ALICE.id, orderly=False)
    assert await ends(subject) is None


async def test_an_orphan_ends_after_its_timeout() -> None:
    subject = new(orphan_timeout=0.05)
    subject.joined(ALICE)
    subject.left(ALICE.id, orderly=False)
    assert await ends(subject) is End.QUIT


async def test_an_orphan_timeout_of_0_means_never() -> None:
    subject = new(orphan_timeout=0)
    subject.joined(ALICE)
    subject.left(ALICE.id, orderly=False)
    assert await ends(subject) is None


async def test_the_next_client_stops_the_clock() -> None:
    subject = new()
    subject.joined(ALICE)
    subject.left(ALICE.id, orderly=True)
    subject.joined(BOB)
    assert await ends(subject) is None


async def test_keep_outlives_everybody() -> None:
    subject = new(keep=True, orphan_timeout=0.01)
    subject.joined(ALICE)
    subject.left(ALICE.id, orderly=True)
    assert await ends(subject) is None


async def test_keep_can_be_asked_for_later() -> None:
    subject = new()
    subject.joined(ALICE)
    subject.left(ALICE.id, orderly=True)
    subject.set_keep()
    assert await ends(subject) is None


@pytest.mark.parametrize("orderly", [True, False])
async def test_an_attached_vm_is_left_never_ended(orderly: bool) -> None:
    subject = new(booted=False, orphan_timeout=0.01)
    subject.joined(ALICE)
    subject.left(ALICE.id, orderly=orderly)
    assert await ends(subject) is End.LEAVE


async def test_a_bridge_keeps_the_vm_but_does_not_speak_for_the_gdb_behind_it() -> None:
    subject = new()
    bridge = ClientInfo("stdio-1")
    subject.joined(bridge)
    subject.joined(ALICE)
    subject.left(ALICE.id, orderly=False)  # gdb was killed, and the bridge saw its end
    subject.left(bridge.id, orderly=None)
    assert await ends(subject) is None


async def test_it_ends_at_once_when_told() -> None:
    subject = new(keep=True)
    subject.joined(ALICE)
    subject.end(End.GONE)
    subject.end(End.QUIT)
    assert await ends(subject) is End.GONE
