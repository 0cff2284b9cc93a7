"""gdb/MI, as the IDEs speak it that drive gdb: no command of the console."""

from __future__ import annotations

import pytest

from kvmdbg import Vm
from tests.support import demo, vms
from tests.support.gdb import GdbError, start_gdb
from tests.support.recording import Recorded

pytestmark = pytest.mark.gdb


@pytest.mark.kvmdbg(run=True, cpus=2)
async def test_a_session_of_an_ide(kvmdbg_vm: Vm) -> None:
    await demo.booted(kvmdbg_vm)
    openat = demo.kernel()["do_sys_openat2"]
    async with start_gdb(None, client=Recorded.MI) as gdb:
        for setting in ("mi-async on", "pagination off", "disassembly-flavor intel"):
            await gdb.mi(f"-gdb-set {setting}")
        await gdb.mi(f"-file-exec-and-symbols {demo.artefact('vmlinux')}")
        await gdb.mi(f"-target-select remote {kvmdbg_vm.status.gdb_socket}")
        await gdb.wait_stopped()
        threads = (await gdb.mi("-thread-info"))["threads"]
        assert sorted(thread["details"] for thread in threads) == ["vCPU 0", "vCPU 1"]

        inserted = (await gdb.mi("-break-insert -h *do_sys_openat2"))["bkpt"]
        await gdb.mi("-exec-continue --all")
        stop = await gdb.wait_stopped()
        assert (stop["reason"], stop["bkptno"]) == ("breakpoint-hit", inserted["number"])
        assert stop["stopped-threads"] == "all"
        frames = (await gdb.mi("-stack-list-frames 0 1"))["stack"]
        assert frames[0]["func"] == "do_sys_openat2"

        names = (await gdb.mi("-data-list-register-names"))["register-names"]
        number = names.index("cr3")
        values = (await gdb.mi(f"-data-list-register-values x {number}"))["register-values"]
        cr3 = await gdb.mi('-data-evaluate-expression "(unsigned long)$cr3"')
        assert int(cr3["value"]) == await kvmdbg_vm.register("cr3")
        assert hex(int(cr3["value"])) in values[0]["value"]
        (block,) = (await gdb.mi("-data-read-memory-bytes $pc 16"))["memory"]
        assert bytes.fromhex(block["contents"]) == await kvmdbg_vm.read(openat, 16)
        with pytest.raises(GdbError, match="Unable to read memory"):
            await gdb.mi("-data-read-memory-bytes 0x1234 16")
        listed = (await gdb.mi("-data-disassemble -s $pc -e $pc+8 -- 2"))["asm_insns"]
        assert int(listed[0]["address"], 0) == openat

        await gdb.mi(f"-break-delete {inserted['number']}")
        for command in ("-exec-next-instruction", "-exec-step-instruction"):
            await gdb.mi(command)
            assert (await gdb.wait_stopped())["reason"] == "end-stepping-range"
        assert await gdb.value("$pc") == await kvmdbg_vm.register("rip") > openat
        watch = (await gdb.mi('-break-watch "*(unsigned long *)&jiffies_64"'))["wpt"]
        await gdb.mi("-exec-continue")
        stop = await gdb.wait_stopped()
        assert (stop["reason"], stop["wpt"]["number"]) == ("watchpoint-trigger", watch["number"])
        assert int(stop["value"]["new"]) == await kvmdbg_vm.read_int("jiffies_64")

        await gdb.mi(f"-break-delete {watch['number']}")
        await gdb.mi("-exec-continue")
        await gdb.mi("-exec-interrupt --all")
        assert (await gdb.wait_stopped())["signal-name"] == "SIGINT"
        await gdb.mi("-target-detach")
        await vms.wait_state(kvmdbg_vm.status, "running")
