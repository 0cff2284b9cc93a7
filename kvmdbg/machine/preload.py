"""The agent's way into a QEMU that we start: loaded before it, with a socket to listen on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvmdbg.agent.late import library

_BACKLOG = 4


@dataclass(frozen=True)
class Preload:
    """What QEMU has to inherit."""

    environment: Mapping[str, str]
    descriptors: tuple[int, ...]


NO_PRELOAD = Preload({}, ())


def preload_trouble() -> str | None:
    """Why the agent cannot be loaded that way, if so."""
    agent = library()
    if not agent.is_file():
        return f"{agent} is missing: install kvmdbg again"
    if any(character in str(agent) for character in ": "):
        return (
            f"the agent is at {agent}, and LD_PRELOAD takes no path with a blank or a colon: "
            "install kvmdbg elsewhere"
        )
    return None


@contextmanager
def preload(listen_at: Path) -> Iterator[Preload]:
    """Have the agent listen at that path; what is opened here is closed at the end."""
    agent = str(library())
    others = os.environ.get("LD_PRELOAD")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(listen_at))
        listen_at.chmod(0o600)
        listener.listen(_BACKLOG)
        environment = {
            "LD_PRELOAD": f"{agent}:{others}" if others else agent,
            "KVMDBG_AGENT_FD": str(listener.fileno()),
        }
        yield Preload(environment, (listener.fileno(),))
