"""What a VM tells its clients unasked. Structs, so that they travel over the control protocol."""

from __future__ import annotations

import msgspec

from kvmdbg.target.stops import Stop


class Stopped(msgspec.Struct, frozen=True, tag="stopped"):
    """The VM stopped, all vCPUs of it."""

    stop: Stop


class Resumed(msgspec.Struct, frozen=True, tag="resumed"):
    """The VM runs on."""


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """Something that a person at the debugger should know, in one sentence."""

    text: str


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """The VM has ended; nothing follows. ``text`` says how, as half a sentence.

    ``signal`` is the signal number that killed QEMU, 0 where it ended by itself. Where the VM
    ``lives``, only what led to it has ended, and ``text`` says what.
    """

    text: str
    signal: int = 0
    lives: bool = False

    def sentence(self, name: str) -> str:
        """What to tell a person; ``name`` is the VM's."""
        if self.lives:
            return f"the VM {name} runs on, but {self.text}: kvmdbg --vm {name} takes over"
        return f"the VM {name} has ended: {self.text}"


VmEvent = Stopped | Resumed | Notice | Gone
