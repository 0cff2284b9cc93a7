"""``python -m kvmdbg.rsp.diagram``: the protocol's state machines, drawn from their tables."""

from __future__ import annotations

from kvmdbg.rsp.client import states as client
from kvmdbg.rsp.machine import mermaid
from kvmdbg.rsp.server import states as server


def diagrams() -> dict[str, str]:
    """Mermaid source of every state machine in this package, by title."""
    return {
        "RSP server session": mermaid(server.SESSION, server.SessionState.IDLE),
        "RSP server acknowledgements": mermaid(server.ACKS, server.AckState.ON),
        "RSP client session": mermaid(client.SESSION, client.ClientState.IDLE),
    }


def main() -> None:
    """Print them as Markdown."""
    for title, source in diagrams().items():
        print(f"**{title}**\n\n```mermaid\n{source}```\n")


if __name__ == "__main__":
    main()
