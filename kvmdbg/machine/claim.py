"""Being the only owner of a VM: claimed before anything of it is touched.

Whoever finds the VM from then on sees that it has an owner, and becomes its client instead.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kvmdbg.errors import OwnerError
from kvmdbg.machine.processes import ProcessId
from kvmdbg.machine.runtime import FileLock, OwnerFolder, RuntimeDir

_TRIES = 10  # who only looks whether there is an owner holds the lock for a moment too
_RETRY = 0.02  # seconds


@dataclass(frozen=True)
class Claim:
    """We own a VM until :meth:`release`, or until this process ends."""

    folder: OwnerFolder
    lock: FileLock

    @classmethod
    async def take(cls, runtime: RuntimeDir, process: ProcessId) -> Claim:
        """Claim the VM of a QEMU process. Raises OwnerError when another process owns it."""
        folder = runtime.owner(process)
        claim = cls(folder, FileLock(folder.lock))
        for _ in range(_TRIES):
            if claim.lock.acquire():
                return claim
            await asyncio.sleep(_RETRY)
        raise OwnerError(f"the VM with pid {process.pid} has an owner already: try again")

    def release(self) -> None:
        """Let another process own it."""
        self.lock.release()
