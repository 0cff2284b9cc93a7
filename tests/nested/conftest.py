"""Tests for a KVM that stops guests in ring 0: the lab's, or one that doctor finds right."""

from __future__ import annotations

import pytest

from kvmdbg.machine.verdict import kvm_verdict


@pytest.fixture(autouse=True)
def needs_right_kvm() -> None:
    verdict = kvm_verdict()
    if not verdict.kvm:
        pytest.skip(f"{verdict.reason}: make lab CMD='pytest tests/nested --kvmdbg-accel kvm'")
