"""Another monitor that stops the VM and lets it run on at once, before anybody could look."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import kvmdbg
from kvmdbg.qmp import QmpConnection
from kvmdbg.target.stops import Paused
from tests.contract.conftest import kvm_abilities
from tests.contract.guest import build
from tests.contract.platforms import PLATFORMS
from tests.support import command, vms
from tests.vm.bare import SECONDS, needs_qemu

pytestmark = [pytest.mark.vm, needs_qemu]


@pytest.mark.parametrize("accel", ["tcg", "kvm"])
async def test_the_vm_runs_on(accel: str, tmp_path: Path) -> None:
    if accel == "kvm":
        kvm_abilities()
    guest = build(PLATFORMS[0], tmp_path)
    arguments = ["-bios", str(guest.firmware), "-cpu", "qemu64,-cx16"]
    definition = tmp_path / "small.toml"
    definition.write_text(f'memory = "64M"\nextra_args = {json.dumps(arguments)}\n')
    gpa = guest.platform.gpa(guest.symbols["ticks"])

    async def ticks(monitor: QmpConnection) -> str:
        look = {"command-line": f"xp /1gx {gpa:#x}"}
        return str(await monitor.execute("human-monitor-command", look))

    name = command.fresh_name()
    async with (
        kvmdbg.open(str(definition), accel=accel, instance=name, run=True) as vm,
        vms.monitor(vm.status) as monitor,
    ):
        for _ in range(40):
            await asyncio.sleep(0.02)
            await monitor.execute("stop")
            before = await ticks(monitor)
            await monitor.execute("cont")
            async with asyncio.timeout(SECONDS):
                while await ticks(monitor) == before:  # noqa: ASYNC110 (the guest's doing)
                    await asyncio.sleep(0.01)
        # Which monitor's it was depends on whether the last cont has been heard of.
        assert isinstance((await vm.pause()).reason, Paused)
        await vm.quit()
