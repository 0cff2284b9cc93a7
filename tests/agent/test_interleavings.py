"""The agent's threads, in random interleavings, under sanitizers.

``soak.c`` says what happens, ``fake.c`` what must hold. ``KVMDBG_SOAK=1`` (``make soak``) runs
until there were :data:`ALL_EVENTS`; otherwise time ends it earlier. A failure prints the latest
events, and the seed of the random numbers; threads are scheduled as they like, so it may take
several runs to see it again.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.building import AGENT, compile_with_fake

SOAK = "KVMDBG_SOAK" in os.environ
ALL_EVENTS = 10_000_000
SECONDS = 3600 if SOAK else 15
SANITIZERS = ["thread", "address,undefined"]


def soak(program: Path, events: int, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, str(events), str(seconds)], capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(2 * SECONDS + 240)
@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_invariants_hold(
    sanitizers: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    compile_with_fake(tmp_path / "soak", "soak.c", sanitizers)
    done = soak(tmp_path / "soak", ALL_EVENTS, SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    record_property("soak", done.stdout)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) ([a-z ]+)", done.stdout)}
    assert all(counts.values()), done.stdout
    assert counts["events"] >= (ALL_EVENTS if SOAK else 50_000)


# What was wrong, or could have been, at one time: the invariants notice each.
MISTAKES = {
    "others run while a byte is lifted": (
        "gate.c",
        "return all_out(vcpu);\n",
        "return true;\n",
    ),
    "code is changed under vCPUs that run": (
        "gate.c",
        "while (!all_out(NULL))",
        "while (false)",
    ),
    "an I/O instruction is left half done": (
        "gate.c",
        "if (vcpu->incomplete) {",
        "if (false) {",
    ),
    "the kick comes before the vCPU says that it is in": (
        "gate.c",
        "    vcpu->in_run = true;\n    if (!vcpu->attention)\n        return true;\n",
        "    if (!vcpu->attention) {\n        poll(NULL, 0, 1);\n"
        "        vcpu->in_run = true;\n        return true;\n    }\n",
    ),
    "TF is left in a saved frame": (
        "run.c",
        "    vcpu->astray = true;\n",
        "",
    ),
    "QEMU's copy of registers wins": (
        "registers.c",
        "    vcpu->attention = true;\n}\n\nstatic void set_again",
        "    registers_forget(vcpu);\n}\n\nstatic void set_again",
    ),
    "the guest's TSC runs on": (
        "requests.c",
        "        clock_go_on();\n",
        "        (void)0;\n",
    ),
    "one watchpoint hides another": (
        "run.c",
        "number < MAX_DEBUG_REGISTERS; number++",
        "number < MAX_DEBUG_REGISTERS && !watched; number++",
    ),
    "a push to what is watched is emulated": (
        "x86.c",
        "is_watched(sp, 8) || ",
        "is_watched(~0ull, 0) || ",
    ),
    "registers of before a reset are set after it": (
        "intercept.c",
        "    registers_forget(vcpu);\n    clock_forget();\n",
        "    clock_forget();\n",
    ),
    "breakpoints stay in when writes are logged": (
        "intercept.c",
        "points_withdraw(old->gpa, old->size, AGENT_WITHDRAWN);",
        "(void)0;",
    ),
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(mistake: str, tmp_path: Path) -> None:
    file, right, wrong = MISTAKES[mistake]
    shutil.copytree(AGENT, tmp_path / "agent")
    source = (tmp_path / "agent" / file).read_text()
    assert source.count(right) == 1
    (tmp_path / "agent" / file).write_text(source.replace(right, wrong))
    compile_with_fake(tmp_path / "soak", "soak.c", "address,undefined", tmp_path / "agent")
    assert soak(tmp_path / "soak", ALL_EVENTS, 100).returncode != 0
