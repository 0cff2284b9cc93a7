"""One conversation with a client: bytes to commands, replies to bytes, acknowledgements between.

The caller alternates::

    for event in session.receive_data(data):      # handle it, then
        transport.write(session.send(reply))      # or session.resume(), and send() the stop later
    events = session.receive_data(b"")            # what had to wait for that reply

Commands are delivered one at a time, in order. What arrives before its turn is kept, even without
an acknowledgement, until the last command is answered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import assert_never

from kvmdbg.errors import LocalProtocolError, RemoteProtocolError
from kvmdbg.rsp import frame
from kvmdbg.rsp.machine import StateMachine
from kvmdbg.rsp.server.commands import Command, MalformedCommand, parse
from kvmdbg.rsp.server.commands.lldb import EnableErrorStrings
from kvmdbg.rsp.server.commands.session import StartNoAckMode, Supported
from kvmdbg.rsp.server.replies import (
    ConsoleOutput,
    Negotiated,
    Ok,
    Reply,
    SupportedFeatures,
    encode,
)
from kvmdbg.rsp.server.states import ACKS, SESSION, AckMove, AckState, SessionMove, SessionState
from kvmdbg.rsp.stops import StopReply

MAX_WAITING = 1024
"""Packets, acknowledgements and so on that a client may send ahead; a real one sends no command
before it has the reply to the last."""

MAX_RESENDS = 8
"""Times in a row that a client may refuse the same packet."""


@dataclass(frozen=True, slots=True)
class InterruptRequest:
    """Ctrl-C while the target runs."""


@dataclass(frozen=True, slots=True)
class Anew:
    """On a line that knows no hang-up another client has begun, and this conversation is over;
    the next one begins with :attr:`ServerSession.greeting`."""


Event = Command | InterruptRequest | frame.Garbage | Anew

_GREETINGS = (b"qSupported", b"QStartNoAckMode")
"""What clients send once, at the beginning."""

_COMMANDS = (frame.Packet, frame.BadPacket, frame.BadChecksum)


class ServerSession:
    """The server's side of one connection, or of one conversation ``on_line`` of many."""

    def __init__(self, max_packet: int = frame.MAX_PACKET, *, on_line: bool = False) -> None:
        self._decoder = frame.Decoder(frame.Role.SERVER, max_packet)
        self._conversation = StateMachine(SESSION, SessionState.IDLE)
        self._acks = StateMachine(ACKS, AckState.ON)
        self._waiting: deque[frame.FrameEvent] = deque()
        self._command: Command | None = None
        self._last_packet = b""
        self._resends = 0
        self._out = bytearray()
        self._on_line = on_line
        self._greeted: set[bytes] = set()
        self._last_payload = b""
        self.greeting = b""
        """On a line: the bytes by which another client has begun."""
        self.negotiated = Negotiated()

    @property
    def state(self) -> SessionState:
        """Where the conversation is."""
        return self._conversation.state

    @property
    def ack_state(self) -> AckState:
        """Whether packets are acknowledged."""
        return self._acks.state

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the client; returns what is to be handled now, which is one command or
        Ctrl-C at most, and may leave acknowledgements for :meth:`data_to_send`.

        Raises RemoteProtocolError when going on makes no sense.
        """
        frames = self._decoder.feed(data)
        if self._on_line and self._begins_anew(frames):
            return [Anew()]
        self._waiting += frames
        if len(self._waiting) > MAX_WAITING:
            raise RemoteProtocolError(f"it sent {MAX_WAITING} packets without awaiting a reply")
        events: list[Event] = []
        while (frame_event := self._next()) is not None:
            event = self._receive(frame_event)
            if event is not None:
                events.append(event)
            if isinstance(event, Command | InterruptRequest):
                break
        return events

    def _begins_anew(self, frames: list[frame.FrameEvent]) -> bool:
        """A greeting for the second time, which is no mere repetition of one without an answer."""
        for found in frames:
            if not isinstance(found, frame.Packet):
                continue
            kind = found.payload.partition(b":")[0]
            if kind in self._greeted and found.payload != self._last_payload:
                self.greeting = frame.encode_packet(found.payload)
                return True
            if kind in _GREETINGS:
                self._greeted.add(kind)
            self._last_payload = found.payload
        return False

    def _next(self) -> frame.FrameEvent | None:
        """Whose turn it is. While the target runs, Ctrl-C overtakes the commands that wait for the
        very stop that it asks for."""
        if not self._waiting or self.state in (SessionState.BUSY, SessionState.CLOSED):
            return None
        if self.state is not SessionState.RUNNING or not isinstance(self._waiting[0], _COMMANDS):
            return self._waiting.popleft()
        if frame.Interrupt() in self._waiting:
            self._waiting.remove(frame.Interrupt())
            return frame.Interrupt()
        return None

    def _receive(self, event: frame.FrameEvent) -> Event | None:
        match event:
            case frame.Packet(payload):
                return self._accept(parse(payload))
            case frame.BadPacket(reason):
                return self._accept(MalformedCommand("packet", reason))
            case frame.BadChecksum() if self.ack_state is AckState.ON:
                self._out += frame.NACK
            case frame.BadChecksum(expected, received):
                digits = received.decode("ascii", "replace")
                reason = f"its checksum is {expected:02x}, not {digits}"
                return self._accept(MalformedCommand("packet", reason))
            case frame.Interrupt():
                is_late = self.state is SessionState.IDLE
                self._conversation.make(SessionMove.INTERRUPT)
                return None if is_late else InterruptRequest()
            case frame.Ack():
                self._acks.make(AckMove.ACK)
                self._resends = 0
            case frame.Nack():
                self._resend()
            case frame.Garbage():
                return event
            case frame.Notification():
                raise LocalProtocolError("a server's decoder yields no notifications")
            case _:
                assert_never(event)
        return None

    def _accept(self, command: Command) -> Command:
        self._acks.make(AckMove.PACKET)
        if self.ack_state is AckState.ON:
            self._out += frame.ACK
        self._conversation.make(SessionMove.COMMAND)
        self._command = command
        return command

    def _resend(self) -> None:
        self._acks.make(AckMove.NACK)
        if self.ack_state is AckState.OFF:
            return
        self._resends += 1
        if self._resends > MAX_RESENDS:
            raise RemoteProtocolError(f"it refused the same packet {MAX_RESENDS} times")
        self._out += self._last_packet

    def send(self, reply: Reply | ConsoleOutput) -> bytes:
        """Answer the command, or report the stop; returns all bytes that are to go out.

        Raises LocalProtocolError if nothing is to be answered.
        """
        if isinstance(reply, ConsoleOutput):
            self._conversation.make(SessionMove.OUTPUT)
        elif self.state is SessionState.RUNNING:
            if not isinstance(reply, StopReply):
                raise LocalProtocolError("a running target is answered for by a stop reply")
            self._conversation.make(SessionMove.STOP)
        else:
            self._conversation.make(SessionMove.REPLY)
        # The answer to qSupported itself is independent of what it agrees on.
        self._last_packet = frame.encode_packet(encode(reply, self.negotiated))
        self._out += self._last_packet
        self._agree(reply)
        return self.data_to_send()

    def _agree(self, reply: Reply | ConsoleOutput) -> None:
        match self._command, reply:
            case Supported() as client, SupportedFeatures() as server:
                self.negotiated = Negotiated.between(client, server)
            case EnableErrorStrings(), Ok():
                self.negotiated = replace(self.negotiated, error_strings=True)
            case StartNoAckMode(), Ok() if self.ack_state is AckState.ON:
                self._acks.make(AckMove.AGREE)
            case _:
                pass

    def notify(self, stop: StopReply) -> bytes:
        """The notification of a stop, in non-stop mode: at any time."""
        return frame.encode_notification(b"Stop:" + encode(stop, self.negotiated))

    def resume(self) -> None:
        """The command was a resumption, and the target runs; its reply will be a stop reply."""
        self._conversation.make(SessionMove.RESUME)

    def stay_silent(self) -> None:
        """The command gets no reply."""
        self._conversation.make(SessionMove.SILENCE)

    def close(self) -> None:
        """The connection is over."""
        if self.state is not SessionState.CLOSED:
            self._conversation.make(SessionMove.CLOSE)

    def data_to_send(self) -> bytes:
        """Take the bytes that are to go out."""
        data = bytes(self._out)
        self._out.clear()
        return data
