"""pytest's hooks: options, the ``kvmdbg`` marker, and the guest's console in failure reports."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from pathlib import Path

import pytest

CONSOLE_LOG = pytest.StashKey[Path]()
"""Where the test's VM logs its console."""

_CONSOLE_TAIL = 8192


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the plugin."""
    group = parser.getgroup("kvmdbg", "debugging Linux kernels in VMs")
    group.addoption(
        "--kvmdbg-vm",
        default="demo",
        metavar="NAME",
        help="the VM definition of kvmdbg_vm (default: demo)",
    )
    group.addoption(
        "--kvmdbg-accel",
        default="auto",
        choices=("auto", "kvm", "tcg"),
        help="accelerator of kvmdbg_vm (default: auto)",
    )
    group.addoption(
        "--kvmdbg-timeout-scale",
        type=float,
        metavar="FACTOR",
        help="multiplies every timeout of kvmdbg_vm (default: 1 under KVM, 4 under TCG)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the fixtures where pytest-asyncio is there to run them."""
    config.addinivalue_line(
        "markers",
        "kvmdbg(vm=None, run=False, instance=None, **overrides): which VM kvmdbg_vm boots, "
        "whether it runs at once, and keys of its definition with other values (cpus=2)",
    )
    if importlib.util.find_spec("pytest_asyncio") is not None:
        from kvmdbg.pytest_plugin import fixtures

        config.pluginmanager.register(fixtures, "kvmdbg-fixtures")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the guest printed last, when a test on it failed."""
    report = yield
    log = item.stash.get(CONSOLE_LOG, None)
    if report.failed and log is not None and log.exists():
        tail = log.read_bytes()[-_CONSOLE_TAIL:].decode(errors="replace")
        report.sections.append(("kvmdbg guest console", tail))
    return report
