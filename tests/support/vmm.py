"""Runs one vCPU as QEMU does, for whatever agent is preloaded: a VM monitor in as many lines.

It prints "ready" when the VM is made, and begins to run it when a byte comes on standard input.
"""

from __future__ import annotations

import signal
import sys

from kvmdbg.errors import IoctlError
from kvmdbg.kvm.local import LocalKvm
from kvmdbg.kvm.probes import SUITE


def main() -> None:
    signal.signal(
        signal.SIGUSR1, lambda *_: None
    )  # it has to make KVM_RUN return, and nothing else
    with LocalKvm() as kvm, SUITE.create_vm(kvm) as vm:
        print("ready", flush=True)
        sys.stdin.read(1)
        while True:
            try:
                vm.run()
            except IoctlError as error:
                print(error, flush=True)


if __name__ == "__main__":
    main()
