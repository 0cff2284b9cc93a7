"""The agent's way into a QEMU that we start: loaded before it, with a socket to listen on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvmdbg.agent.late import library
from kvmdbg.errors import AgentError

_BACKLOG = 4


@dataclass(frozen=True)
class Preload:
    """What QEMU has to inherit."""

    environment: Mapping[str, str]
    descriptors: tuple[int, ...]


NO_PRELOAD = Preload({}, ())


@contextmanager
def preload(listen_at: Path) -> Iterator[Preload]:
    """Have the agent listen at that path; what is opened here is closed at the end.

    Raises AgentError where the agent cannot be loaded that way.
    """
    agent = str(library())
    if any(character in agent for character in ": "):
        raise AgentError(
            f"the agent is at {agent}, and LD_PRELOAD takes no path with a blank or a colon: "
            "install kvmdbg elsewhere"
        )
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
