"""The ``kvmdbg_vm`` fixture."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kvmdbg import api
from kvmdbg.errors import KvmdbgError
from kvmdbg.pytest_plugin.hooks import CONSOLE_LOG

_TIME_SCALE = {"kvm": 1.0, "tcg": 4.0}
_numbers = itertools.count(1)


@pytest_asyncio.fixture
async def kvmdbg_vm(request: pytest.FixtureRequest) -> AsyncIterator[api.Vm]:
    """A VM of the test's own, frozen at its first instruction; ended after the test.

    The marker ``@pytest.mark.kvmdbg(vm="demo", run=True, cpus=2)`` chooses; of several, on the
    module, the class, the test and its parameters, the nearest one that names a key counts.
    """
    config = request.config
    choice: dict[str, Any] = {}
    for marker in request.node.iter_markers("kvmdbg"):
        choice = dict(marker.kwargs) | choice
    name = choice.pop("vm", None) or config.getoption("--kvmdbg-vm")
    run = choice.pop("run", False)
    instance = choice.pop("instance", None) or f"t{os.getpid()}-{next(_numbers)}"
    opened = api.open(
        name,
        accel=config.getoption("--kvmdbg-accel"),
        instance=instance,
        overrides=choice,
        run=run,
    )
    async with AsyncExitStack() as stack:
        try:
            vm = await stack.enter_async_context(opened)
        except KvmdbgError as error:
            # What is wrong is in the sentence, and not in kvmdbg's source.
            raise pytest.fail.Exception(f"kvmdbg: {error}", pytrace=False) from None
        scale = config.getoption("--kvmdbg-timeout-scale")
        vm.time_scale = scale if scale is not None else _TIME_SCALE[vm.status.accel]
        if vm.status.console_log is not None:
            request.node.stash[CONSOLE_LOG] = Path(vm.status.console_log)
        try:
            yield vm
        finally:
            if vm.gone is None:
                await vm.quit()
