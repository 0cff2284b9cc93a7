"""State machines as data."""

from enum import Enum

import pytest

from kvmdbg.errors import LocalProtocolError
from kvmdbg.rsp.diagram import diagrams
from kvmdbg.rsp.machine import StateMachine, mermaid
from kvmdbg.rsp.server.states import SESSION, SessionMove, SessionState


class Lamp(Enum):
    OFF = 0
    LIT = 1


class Switch(Enum):
    PRESS = 0
    BREAK = 1


TABLE = {
    (Lamp.OFF, Switch.PRESS): Lamp.LIT,
    (Lamp.LIT, Switch.PRESS): Lamp.OFF,
    (Lamp.LIT, Switch.BREAK): Lamp.OFF,
}


def test_moves() -> None:
    machine = StateMachine(TABLE, Lamp.OFF)
    machine.make(Switch.PRESS)
    assert machine.state is Lamp.LIT
    machine.make(Switch.BREAK)
    assert not machine.allows(Switch.BREAK)
    with pytest.raises(LocalProtocolError, match="BREAK is illegal in the state OFF"):
        machine.make(Switch.BREAK)


def test_diagram() -> None:
    assert mermaid(TABLE, Lamp.OFF) == (
        "stateDiagram-v2\n    [*] --> OFF\n    OFF --> LIT: press\n    LIT --> OFF: press, break\n"
    )


def test_every_move_of_the_server_is_in_its_diagram() -> None:
    source = diagrams()["RSP server session"]
    assert {move for move in SessionMove if move.name.lower() in source} == set(SessionMove)
    assert {state for state in SessionState if state.name in source} == set(SessionState)
    assert len(SESSION) == sum(line.count(",") + 1 for line in source.splitlines() if ": " in line)
