"""The server's conversation: order, acknowledgements, Ctrl-C."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmdbg.errors import LocalProtocolError, RemoteProtocolError
from kvmdbg.rsp.frame import Garbage
from kvmdbg.rsp.server.commands import Command, MalformedCommand
from kvmdbg.rsp.server.commands.lldb import EnableErrorStrings
from kvmdbg.rsp.server.commands.registers import ReadRegister, ReadRegisters
from kvmdbg.rsp.server.commands.resume import VCont
from kvmdbg.rsp.server.commands.session import Kill, StartNoAckMode, Supported
from kvmdbg.rsp.server.replies import ConsoleOutput, Error, Memory, Ok, SupportedFeatures
from kvmdbg.rsp.server.session import (
    MAX_RESENDS,
    MAX_WAITING,
    Anew,
    Event,
    InterruptRequest,
    ServerSession,
)
from kvmdbg.rsp.server.states import SESSION, AckState, SessionMove, SessionState
from kvmdbg.rsp.stops import Stopped
from tests.support import naive_rsp


def wire(*payloads: bytes) -> bytes:
    return b"".join(map(naive_rsp.packet, payloads))


def is_in(session: ServerSession, state: SessionState) -> bool:
    """Keeps mypy from believing that a state lasts."""
    return session.state is state


def without_acks() -> ServerSession:
    session = ServerSession()
    assert session.receive_data(wire(b"QStartNoAckMode")) == [StartNoAckMode()]
    assert session.send(Ok()) == b"+$OK#9a"
    assert session.receive_data(b"+") == []
    assert session.ack_state is AckState.OFF
    return session


def test_a_command_is_acknowledged_and_answered() -> None:
    session = ServerSession()
    assert session.receive_data(wire(b"g")) == [ReadRegisters()]
    assert session.data_to_send() == b"+"
    assert is_in(session, SessionState.BUSY)
    assert session.send(Memory(b"\x01")) == wire(b"01")
    assert is_in(session, SessionState.IDLE)


def test_a_damaged_packet_is_refused() -> None:
    session = ServerSession()
    assert session.receive_data(b"$g#00") == []
    assert session.data_to_send() == b"-"


def test_a_damaged_packet_without_acks_gets_an_error_for_nobody_would_send_it_again() -> None:
    session = without_acks()
    (event,) = session.receive_data(b"$g#00")
    assert isinstance(event, MalformedCommand)
    assert session.send(Error(22)) == wire(b"E16")


def test_the_last_packet_is_sent_again_on_request() -> None:
    session = ServerSession()
    session.receive_data(wire(b"g"))
    session.send(Memory(b"\x01"))
    for _ in range(MAX_RESENDS):
        assert session.receive_data(b"-") == []
        assert session.data_to_send() == wire(b"01")
    with pytest.raises(RemoteProtocolError):
        session.receive_data(b"-")


def test_an_ack_ends_the_counting_of_resends() -> None:
    session = ServerSession()
    session.receive_data(wire(b"g"))
    session.send(Memory(b"\x01"))
    for _ in range(3):
        session.receive_data(b"-" * MAX_RESENDS + b"+")


def test_no_ack_mode_begins_after_ok() -> None:
    session = without_acks()
    assert session.receive_data(wire(b"g")) == [ReadRegisters()]
    assert session.data_to_send() == b""
    assert session.receive_data(b"-+") == []
    assert session.data_to_send() == b""


def test_the_ok_to_no_ack_mode_can_still_be_sent_again() -> None:
    session = ServerSession()
    session.receive_data(wire(b"QStartNoAckMode"))
    session.send(Ok())
    session.receive_data(b"-")
    assert session.data_to_send() == b"$OK#9a"
    assert [session.ack_state] == [AckState.LEAVING]
    session.receive_data(b"+")
    assert [session.ack_state] == [AckState.OFF]


def test_no_ack_mode_also_begins_with_the_next_packet() -> None:
    session = ServerSession()
    session.receive_data(wire(b"QStartNoAckMode"))
    session.send(Ok())
    session.receive_data(wire(b"g"))
    assert session.data_to_send() == b""


def test_a_refused_no_ack_mode_changes_nothing() -> None:
    session = ServerSession()
    session.receive_data(wire(b"QStartNoAckMode"))
    session.send(Error(1))
    assert session.ack_state is AckState.ON


def test_commands_sent_ahead_wait_for_their_turn() -> None:
    session = without_acks()
    assert session.receive_data(wire(b"g", b"p1")) == [ReadRegisters()]
    assert session.receive_data(wire(b"p2")) == []
    session.send(Ok())
    assert session.receive_data(b"") == [ReadRegister(1)]
    session.send(Ok())
    assert session.receive_data(b"") == [ReadRegister(2)]


def test_a_client_cannot_pile_up_commands() -> None:
    session = without_acks()
    with pytest.raises(RemoteProtocolError):
        session.receive_data(wire(b"g") * (MAX_WAITING + 1))


def running() -> ServerSession:
    session = without_acks()
    (event,) = session.receive_data(wire(b"vCont;c"))
    assert isinstance(event, VCont)
    session.resume()
    return session


def test_ctrl_c_while_running() -> None:
    session = running()
    assert session.receive_data(b"\x03") == [InterruptRequest()]
    assert session.send(Stopped(2)) == wire(b"S02")
    assert is_in(session, SessionState.IDLE)


def test_ctrl_c_right_behind_the_resumption_is_kept() -> None:
    session = without_acks()
    (event,) = session.receive_data(wire(b"vCont;c") + b"\x03")
    assert isinstance(event, VCont)
    assert session.receive_data(b"") == []
    session.resume()
    assert session.receive_data(b"") == [InterruptRequest()]


def test_ctrl_c_that_crossed_the_stop_reply_is_dropped() -> None:
    session = running()
    session.send(Stopped(5))
    assert session.receive_data(b"\x03" + wire(b"vCont;c")) != []
    session.resume()
    assert session.receive_data(b"") == []


def test_ctrl_c_overtakes_commands_that_wait_for_the_stop() -> None:
    session = running()
    assert session.receive_data(wire(b"g") + b"\x03") == [InterruptRequest()]
    session.send(Stopped(2))
    assert session.receive_data(b"") == [ReadRegisters()]


def test_ctrl_c_between_the_halves_of_a_split_packet_is_data() -> None:
    session = without_acks()
    packet = wire(b"X0,1:\x03")
    at = packet.index(b"\x03")
    assert session.receive_data(packet[:at]) == []
    assert session.receive_data(packet[at : at + 1]) == []
    assert len(session.receive_data(packet[at + 1 :])) == 1


def test_console_output_only_while_a_reply_is_awaited() -> None:
    session = running()
    assert session.send(ConsoleOutput("x")) == wire(b"O78")
    assert is_in(session, SessionState.RUNNING)
    session.send(Stopped(5))
    with pytest.raises(LocalProtocolError):
        session.send(ConsoleOutput("x"))


def test_a_running_target_is_answered_for_by_a_stop_reply_only() -> None:
    with pytest.raises(LocalProtocolError):
        running().send(Ok())


def test_nothing_is_sent_unasked() -> None:
    with pytest.raises(LocalProtocolError):
        without_acks().send(Ok())


def test_kill_gets_no_reply() -> None:
    session = without_acks()
    assert session.receive_data(wire(b"k")) == [Kill()]
    session.stay_silent()
    assert is_in(session, SessionState.IDLE)


def test_negotiation() -> None:
    session = without_acks()
    (event,) = session.receive_data(wire(b"qSupported:multiprocess+"))
    assert isinstance(event, Supported)
    session.send(SupportedFeatures(frozenset({"multiprocess"}), 100))
    assert session.negotiated.multiprocess
    assert not session.negotiated.error_message


def test_error_strings_are_agreed_on_by_a_packet_of_their_own() -> None:
    session = without_acks()
    assert session.receive_data(wire(b"QEnableErrorStrings")) == [EnableErrorStrings()]
    assert not session.negotiated.error_strings
    session.send(Ok())
    assert session.negotiated.error_strings


def test_garbage_is_reported() -> None:
    assert without_acks().receive_data(b"xyz" + wire(b"g")) == [Garbage(3), ReadRegisters()]


def test_oversized_commands_get_an_answer() -> None:
    session = ServerSession(max_packet=10)
    (event,) = session.receive_data(wire(b"X0,1:" + bytes(100)))
    assert isinstance(event, MalformedCommand)
    assert session.data_to_send() == b"+"


def test_closed_is_closed() -> None:
    session = running()
    session.close()
    session.close()
    assert is_in(session, SessionState.CLOSED)
    assert session.receive_data(b"\x03" + wire(b"g")) == []
    with pytest.raises(LocalProtocolError):
        session.send(Stopped(5))


@pytest.mark.parametrize("state", SessionState)
def test_every_open_state_can_be_closed(state: SessionState) -> None:
    assert ((state, SessionMove.CLOSE) in SESSION) == (state is not SessionState.CLOSED)


class Client:
    """Answers each command at once; a resumption stops when Ctrl-C asks for it."""

    def __init__(self) -> None:
        self.session = ServerSession()
        self.events: list[Event] = []
        self.output = b""

    def feed(self, data: bytes) -> None:
        events = self.session.receive_data(data)
        while events:
            self.output += self.session.data_to_send()
            for event in events:
                self.handle(event)
            events = self.session.receive_data(b"")
        self.output += self.session.data_to_send()

    def handle(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, VCont):
            self.session.resume()
        elif isinstance(event, Command | InterruptRequest):
            stop = isinstance(event, InterruptRequest)
            self.output += self.session.send(Stopped(2) if stop else Ok())


PIECES = st.sampled_from(
    [
        wire(b"g"), wire(b"m10,8"), wire(b"vCont;c") + b"\x03", b"\x03", b"+", b"$g#00", b"junk",
        wire(b"QStartNoAckMode") + b"+", wire(b"X0,1:\x03"), wire(b"y"), b"$p",
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 500), max_size=8))
def test_any_split_of_a_conversation_has_the_same_outcome(stream: bytes, cuts: list[int]) -> None:
    whole, pieces = Client(), Client()
    whole.feed(stream)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        pieces.feed(stream[start:end])

    assert pieces.events == whole.events
    assert pieces.output == whole.output


# --- lines that know no hang-up ------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        (b"qSupported:a+", b"QStartNoAckMode", b"g"),
        (b"QStartNoAckMode", b"qSupported:a+", b"g"),
        (b"qSupported:a+", b"g"),
    ],
)
@pytest.mark.parametrize("greeting", [b"qSupported:a+", b"qSupported:xmlRegisters=i386"])
def test_on_a_line_another_client_is_known_by_its_greeting(
    first: tuple[bytes, ...], greeting: bytes
) -> None:
    session = ServerSession(on_line=True)
    for payload in first:
        (command,) = session.receive_data(wire(payload))
        reply = SupportedFeatures(frozenset(), 4096) if isinstance(command, Supported) else Ok()
        session.send(reply)
    assert session.receive_data(b"+" + wire(greeting)) == [Anew()]
    assert session.greeting == wire(greeting)


def test_on_a_line_a_greeting_counts_while_the_target_runs() -> None:
    session = ServerSession(on_line=True)
    session.receive_data(wire(b"QStartNoAckMode"))
    session.send(Ok())
    session.receive_data(wire(b"vCont;c"))
    session.resume()
    assert session.receive_data(wire(b"g")) == []
    assert session.receive_data(wire(b"QStartNoAckMode")) == [Anew()]


def test_on_a_line_a_greeting_sent_twice_is_one_client_s() -> None:
    session = ServerSession(on_line=True)
    for _ in range(2):
        (command,) = session.receive_data(wire(b"qSupported:a+"))
        assert isinstance(command, Supported)
        session.send(SupportedFeatures(frozenset(), 4096))


def test_elsewhere_a_client_may_greet_as_often_as_it_likes() -> None:
    session = ServerSession()
    for payload in (b"qSupported:a+", b"g", b"qSupported:a+"):
        assert session.receive_data(wire(payload)) != [Anew()]
        session.send(SupportedFeatures(frozenset(), 4096) if payload != b"g" else Ok())
