"""The client's state machine."""

from __future__ import annotations

from enum import Enum


class ClientState(Enum):
    """Where the conversation is."""

    IDLE = "we may send a request"
    SENT = "a request has not been acknowledged yet"
    AWAITING = "a request waits for its reply"
    RESUMING = "a resumption has not been acknowledged yet"
    RUNNING = "the target runs; its stop reply is to come"
    CLOSED = "the connection is over"


class ClientMove(Enum):
    """What happens in a conversation."""

    REQUEST = "we sent a request"
    RESUME = "we sent a resumption"
    ACK = "+ was received"
    OUTPUT = "console output was received"
    REPLY = "a reply was received"
    STOP = "a stop reply was received"
    ABANDON = "the target is known to have stopped, though no stop reply came"
    CLOSE = "either side hung up"


_S, _M = ClientState, ClientMove

SESSION: dict[tuple[ClientState, ClientMove], ClientState] = {
    (_S.IDLE, _M.REQUEST): _S.SENT,
    (_S.IDLE, _M.RESUME): _S.RESUMING,
    (_S.SENT, _M.ACK): _S.AWAITING,
    (_S.AWAITING, _M.OUTPUT): _S.AWAITING,
    (_S.AWAITING, _M.REPLY): _S.IDLE,
    (_S.RESUMING, _M.ACK): _S.RUNNING,
    (_S.RUNNING, _M.OUTPUT): _S.RUNNING,
    (_S.RUNNING, _M.STOP): _S.IDLE,
    # The stub refused to resume: an error, or the empty reply.
    (_S.RUNNING, _M.REPLY): _S.IDLE,
    (_S.RUNNING, _M.ABANDON): _S.IDLE,
    **{(state, _M.CLOSE): _S.CLOSED for state in _S if state is not _S.CLOSED},
}
