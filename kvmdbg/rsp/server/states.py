"""The server's state machines."""

from __future__ import annotations

from enum import Enum


class SessionState(Enum):
    """Where the conversation is."""

    IDLE = "the client may send a command"
    BUSY = "a command waits for its reply"
    RUNNING = "the target runs; the client waits for a stop reply and may send Ctrl-C"
    CLOSED = "the connection is over"


class SessionMove(Enum):
    """What happens in a conversation."""

    COMMAND = "a command was received"
    INTERRUPT = "Ctrl-C was received"
    REPLY = "we answered"
    SILENCE = "the command wants no answer (k, R)"
    RESUME = "we accepted a resumption"
    OUTPUT = "we sent console output"
    STOP = "we sent the stop reply"
    CLOSE = "either side hung up"


_S, _M = SessionState, SessionMove

SESSION: dict[tuple[SessionState, SessionMove], SessionState] = {
    (_S.IDLE, _M.COMMAND): _S.BUSY,
    # It crossed our stop reply on the way: the target is stopped already.
    (_S.IDLE, _M.INTERRUPT): _S.IDLE,
    (_S.BUSY, _M.OUTPUT): _S.BUSY,
    (_S.BUSY, _M.REPLY): _S.IDLE,
    (_S.BUSY, _M.SILENCE): _S.IDLE,
    (_S.BUSY, _M.RESUME): _S.RUNNING,
    (_S.RUNNING, _M.INTERRUPT): _S.RUNNING,
    (_S.RUNNING, _M.OUTPUT): _S.RUNNING,
    (_S.RUNNING, _M.STOP): _S.IDLE,
    (_S.IDLE, _M.CLOSE): _S.CLOSED,
    (_S.BUSY, _M.CLOSE): _S.CLOSED,
    (_S.RUNNING, _M.CLOSE): _S.CLOSED,
}


class AckState(Enum):
    """Whether packets are acknowledged."""

    ON = "every packet is"
    LEAVING = "we said OK to QStartNoAckMode, and the client has yet to acknowledge that"
    OFF = "none is"


class AckMove(Enum):
    """What changes it, or depends on it."""

    PACKET = "a packet was received"
    ACK = "+ was received"
    NACK = "- was received"
    AGREE = "we sent OK to QStartNoAckMode"


ACKS: dict[tuple[AckState, AckMove], AckState] = {
    (AckState.ON, AckMove.PACKET): AckState.ON,
    (AckState.ON, AckMove.ACK): AckState.ON,
    (AckState.ON, AckMove.NACK): AckState.ON,
    (AckState.ON, AckMove.AGREE): AckState.LEAVING,
    (AckState.LEAVING, AckMove.ACK): AckState.OFF,
    (AckState.LEAVING, AckMove.NACK): AckState.LEAVING,
    (AckState.LEAVING, AckMove.PACKET): AckState.OFF,
    (AckState.OFF, AckMove.PACKET): AckState.OFF,
    (AckState.OFF, AckMove.ACK): AckState.OFF,
    (AckState.OFF, AckMove.NACK): AckState.OFF,
}
