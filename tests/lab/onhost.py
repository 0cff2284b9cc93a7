"""``LAB=host``: commands of the lab on this machine, where its own KVM is to be used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kvmdbg.machine.verdict import Verdict, kvm_verdict
from tests.lab.errors import LabError
from tests.lab.tree import ROOT


def run_on_host(command: str, ask_doctor: Callable[[], Verdict] = kvm_verdict) -> int:
    """Run a command in the tree, as an L1 would; its status.

    Raises LabError unless doctor says that this machine's KVM can be debugged with.
    """
    verdict = ask_doctor()
    if not verdict.kvm:
        raise LabError(
            f"LAB=host needs a KVM that is right, and {verdict.reason}: "
            "leave LAB=host out to use an emulated one"
        )
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    environment = {**os.environ, "PATH": path, "KVMDBG_LAB": "host"}
    arguments = ["-c", command] if command else ["-i"]
    status = subprocess.run(["bash", *arguments], cwd=ROOT, env=environment, check=False).returncode
    return status if status >= 0 else 128 - status
