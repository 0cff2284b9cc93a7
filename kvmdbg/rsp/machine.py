"""State machines as data: an Enum of states, an Enum of moves, and one table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

from kvmdbg.errors import LocalProtocolError

State = TypeVar("State", bound=Enum)
Move = TypeVar("Move", bound=Enum)


class StateMachine(Generic[State, Move]):
    """Follows ``table`` from ``start``."""

    def __init__(self, table: Mapping[tuple[State, Move], State], start: State) -> None:
        self._table = table
        self.state = start

    def allows(self, move: Move) -> bool:
        """True if the table has ``move`` in this state."""
        return (self.state, move) in self._table

    def make(self, move: Move) -> None:
        """Make ``move``. Raises LocalProtocolError if the table does not have it."""
        try:
            self.state = self._table[self.state, move]
        except KeyError:
            raise LocalProtocolError(
                f"the move {move.name} is illegal in the state {self.state.name}"
            ) from None


def mermaid(table: Mapping[tuple[State, Move], State], start: State) -> str:
    """A Mermaid state diagram of ``table``."""
    labels: dict[tuple[State, State], list[str]] = {}
    for (state, move), target in table.items():
        labels.setdefault((state, target), []).append(move.name.lower())
    lines = ["stateDiagram-v2", f"    [*] --> {start.name}"]
    lines += [f"    {a.name} --> {b.name}: {', '.join(moves)}" for (a, b), moves in labels.items()]
    return "\n".join(lines) + "\n"
