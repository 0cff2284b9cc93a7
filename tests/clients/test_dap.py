"""gdb's Debug Adapter Protocol, as VS Code speaks it."""

from __future__ import annotations

import base64

import pytest

from kvmdbg import Vm
from tests.support import demo, vms
from tests.support.dap import Dap, start_dap

pytestmark = pytest.mark.gdb

VS_CODE = {
    "clientID": "vscode",
    "clientName": "Visual Studio Code",
    "adapterID": "gdb",
    "locale": "en",
    "linesStartAt1": True,
    "columnsStartAt1": True,
    "pathFormat": "path",
    "supportsVariableType": True,
    "supportsVariablePaging": True,
    "supportsRunInTerminalRequest": True,
    "supportsMemoryReferences": True,
    "supportsProgressReporting": True,
    "supportsInvalidatedEvent": True,
    "supportsMemoryEvent": True,
}


# gdb quits when the IDE disconnects, and kills what it did not attach to.
@pytest.mark.kvmdbg(run=True, cpus=2, debug={"on_kill": "detach"})
async def test_a_session_of_vs_code(kvmdbg_vm: Vm) -> None:
    await demo.booted(kvmdbg_vm)
    openat, compute = demo.kernel()["do_sys_openat2"], demo.workload()["workload_compute"]
    async with start_dap() as dap:
        await attach(kvmdbg_vm, dap, function="do_sys_openat2", instruction=compute)
        threads = (await dap.ask("threads"))["threads"]
        assert [thread["name"] for thread in threads] == ["vCPU 0", "vCPU 1"]

        thread, pc = await stopped_at(dap, "breakpoint", "continue", threadId=1)
        assert pc in (openat, compute)
        await dap.ask("setFunctionBreakpoints", breakpoints=[])
        thread, pc = await stopped_at(dap, "breakpoint", "continue", threadId=thread)
        assert pc == compute
        await dap.ask("setInstructionBreakpoints", breakpoints=[])
        await dap.ask("setFunctionBreakpoints", breakpoints=[{"name": "do_sys_openat2"}])
        thread, pc = await stopped_at(dap, "breakpoint", "continue", threadId=thread)
        assert pc == openat
        code = await dap.ask("readMemory", memoryReference=hex(openat), count=16)
        assert base64.b64decode(code["data"]) == await kvmdbg_vm.read(openat, 16)
        assert (await registers(dap, thread))["rip"].startswith(hex(openat))

        by_instruction = {"threadId": thread, "granularity": "instruction"}
        _, after = await stopped_at(dap, "step", "next", **by_instruction)
        _, last = await stopped_at(dap, "step", "stepIn", **by_instruction)
        assert openat < after < last == await kvmdbg_vm.register("rip")
        listed = await dap.ask("disassemble", memoryReference=hex(last), instructionCount=2)
        assert listed["instructions"][0]["address"] == hex(last)
        said = await dap.ask("evaluate", expression="monitor clients", context="repl")
        assert "(you)" in said["result"]

        await dap.ask("setFunctionBreakpoints", breakpoints=[])
        await dap.ask("continue", threadId=thread)
        await vms.wait_state(kvmdbg_vm.status, "running")
        await dap.ask("pause", threadId=thread)
        await dap.wait_event("stopped")
        await dap.ask("disconnect", terminateDebuggee=False)
        await vms.wait_state(kvmdbg_vm.status, "running")


async def attach(vm: Vm, dap: Dap, *, function: str, instruction: int) -> None:
    """What happens between the start of a debug session and its first stop, in VS Code's order."""
    capabilities = await dap.ask("initialize", **VS_CODE)
    assert capabilities["supportsInstructionBreakpoints"]
    program = str(demo.artefact("vmlinux"))
    attached = dap.send("attach", target=vm.status.gdb_socket, program=program)
    await dap.wait_event("initialized")
    await dap.ask("setFunctionBreakpoints", breakpoints=[{"name": function}])
    places = [{"instructionReference": hex(instruction)}]
    await dap.ask("setInstructionBreakpoints", breakpoints=places)
    await dap.ask("configurationDone")
    await dap.answer(attached)
    assert (await dap.wait_event("stopped"))["reason"] == "attach"


async def stopped_at(dap: Dap, reason: str, command: str, **arguments: object) -> tuple[int, int]:
    """Let the VM run; the thread that stops, and where."""
    await dap.ask(command, **arguments)
    stopped = await dap.wait_event("stopped")
    assert stopped["reason"] == reason
    assert stopped["allThreadsStopped"]
    thread = stopped["threadId"]
    frames = await dap.ask("stackTrace", threadId=thread, startFrame=0, levels=1)
    return thread, int(frames["stackFrames"][0]["instructionPointerReference"], 0)


async def registers(dap: Dap, thread: int) -> dict[str, str]:
    """The registers as VS Code shows them."""
    frames = await dap.ask("stackTrace", threadId=thread, startFrame=0, levels=1)
    scopes = await dap.ask("scopes", frameId=frames["stackFrames"][0]["id"])
    (scope,) = [s for s in scopes["scopes"] if s["name"] == "Registers"]
    shown = await dap.ask("variables", variablesReference=scope["variablesReference"])
    return {variable["name"]: variable["value"] for variable in shown["variables"]}
