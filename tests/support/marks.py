"""Marks that several modules use."""

import pytest

both_cpu_counts = pytest.mark.parametrize(
    "cpus",
    [pytest.param(n, marks=pytest.mark.kvmdbg(cpus=n), id=f"{n}cpu") for n in (1, 2)],
)
"""Run the test on a VM with one vCPU, and on one with two."""
