"""One conversation with a stub: requests to bytes, bytes to replies and stops.

Always acknowledges: QEMU's stub knows no other mode. Time is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.errors import LocalProtocolError, RemoteProtocolError
from kvmdbg.rsp import frame
from kvmdbg.rsp.client.states import SESSION, ClientMove, ClientState
from kvmdbg.rsp.machine import StateMachine
from kvmdbg.rsp.octets import from_hex
from kvmdbg.rsp.stops import StopReply, is_stop, parse_stop

MAX_RESENDS = 8
"""Times in a row that a stub may refuse the same packet."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The payload that answers the request."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """The target that we resumed has stopped."""

    stop: StopReply


@dataclass(frozen=True, slots=True)
class Output:
    """``O``: text for the console, such as what a monitor command prints."""

    text: str


@dataclass(frozen=True, slots=True)
class Unsolicited:
    """A packet that answers nothing, e.g. QEMU's ``T02`` when somebody connects to a running
    guest, or when another monitor stops it. It has been acknowledged."""

    payload: bytes


Event = Reply | Stop | Output | Unsolicited | frame.Notification | frame.Garbage


class ClientSession:
    """The client's side of one connection."""

    def __init__(self, max_packet: int = frame.MAX_PACKET) -> None:
        self._decoder = frame.Decoder(frame.Role.CLIENT, max_packet)
        self._conversation = StateMachine(SESSION, ClientState.IDLE)
        self._last_packet = b""
        self._resends = 0
        self._out = bytearray()

    @property
    def state(self) -> ClientState:
        """Where the conversation is."""
        return self._conversation.state

    def request(self, payload: bytes) -> bytes:
        """Ask; returns all bytes that are to go out. A Reply will follow.

        Raises LocalProtocolError while another request waits.
        """
        self._conversation.make(ClientMove.REQUEST)
        return self._send(payload)

    def resume(self, payload: bytes) -> bytes:
        """Let the target run (``vCont`` and the like); as :meth:`request`, but a Stop will
        follow, or a Reply that says why not."""
        self._conversation.make(ClientMove.RESUME)
        return self._send(payload)

    def interrupt(self) -> bytes:
        """Ctrl-C; legal at any time, and without an answer of its own."""
        self._out += frame.INTERRUPT
        return self.data_to_send()

    def abandon(self) -> None:
        """The target that we resumed is known to have stopped; a stop reply that comes late is
        Unsolicited."""
        self._conversation.make(ClientMove.ABANDON)

    def resend(self) -> bytes:
        """The last packet again, while it is not acknowledged: QEMU loses what is sent to it
        while the guest runs."""
        if self.state not in (ClientState.SENT, ClientState.RESUMING):
            raise LocalProtocolError("the last packet was acknowledged")
        self._out += self._last_packet
        return self.data_to_send()

    def close(self) -> None:
        """The connection is over."""
        if self.state is not ClientState.CLOSED:
            self._conversation.make(ClientMove.CLOSE)

    def data_to_send(self) -> bytes:
        """Take the bytes that are to go out."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the stub; may leave acknowledgements for :meth:`data_to_send`.

        Raises RemoteProtocolError when going on makes no sense.
        """
        events: list[Event] = []
        for event in self._decoder.feed(data):
            match event:
                case frame.Packet(payload):
                    self._out += frame.ACK
                    events.append(self._receive(payload))
                case frame.Ack():
                    self._resends = 0
                    if self._conversation.allows(ClientMove.ACK):
                        self._conversation.make(ClientMove.ACK)
                case frame.Nack():
                    self._resend()
                case frame.BadChecksum():
                    self._out += frame.NACK
                case frame.BadPacket(reason):
                    raise RemoteProtocolError(f"a packet cannot be read: {reason}")
                case frame.Notification() | frame.Garbage():
                    events.append(event)
                case frame.Interrupt():
                    raise LocalProtocolError("a client's decoder yields no interrupts")
        return events

    def _send(self, payload: bytes) -> bytes:
        self._last_packet = frame.encode_packet(payload)
        self._out += self._last_packet
        return self.data_to_send()

    def _resend(self) -> None:
        self._resends += 1
        if self._resends > MAX_RESENDS:
            raise RemoteProtocolError(f"it refused the same packet {MAX_RESENDS} times")
        self._out += self._last_packet

    def _receive(self, payload: bytes) -> Event:
        # A stub acknowledges a request before it answers: what comes earlier is no answer.
        match self.state:
            case ClientState.AWAITING | ClientState.RUNNING if _is_output(payload):
                self._conversation.make(ClientMove.OUTPUT)
                return Output(from_hex(payload[1:]).decode(errors="replace"))
            case ClientState.RUNNING if is_stop(payload):
                stop = parse_stop(payload)
                self._conversation.make(ClientMove.STOP)
                return Stop(stop)
            case ClientState.AWAITING | ClientState.RUNNING:
                self._conversation.make(ClientMove.REPLY)
                return Reply(payload)
            case _:
                return Unsolicited(payload)


def _is_output(payload: bytes) -> bool:
    return payload[:1] == b"O" and payload != b"OK"
