"""``LAB=host``: commands of the lab on this machine, where its own KVM is to be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.tree import ROOT

KVM_DEVICE = Path("/dev/kvm")


def run_on_host(command: str) -> int:
    """Run a command in the tree, as an L1 would; its status. Raises LabError without KVM."""
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR))
    except OSError as error:
        raise LabError(
            f"LAB=host needs this machine's KVM, and {KVM_DEVICE} says: {error.strerror}: "
            "leave LAB=host out to use an emulated one"
        ) from error
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    environment = {**os.environ, "PATH": path, "KVMDBG_LAB": "host"}
    arguments = ["-c", command] if command else ["-i"]
    status = subprocess.run(["bash", *arguments], cwd=ROOT, env=environment, check=False).returncode
    return status if status >= 0 else 128 - status
