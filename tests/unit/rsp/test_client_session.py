"""The client's conversation, also with the server's over a wire."""

import pytest

from kvmdbg.addr import Gva, ThreadId
from kvmdbg.errors import LocalProtocolError, RemoteProtocolError
from kvmdbg.rsp.client import requests
from kvmdbg.rsp.client.session import (
    MAX_RESENDS,
    ClientSession,
    Output,
    Reply,
    Stop,
    Unsolicited,
)
from kvmdbg.rsp.client.states import ClientState
from kvmdbg.rsp.frame import Garbage, Notification
from kvmdbg.rsp.server.commands import (
    breakpoints,
    memory,
    parse,
    registers,
    resume,
    stepping,
    threads,
    xfer,
)
from kvmdbg.rsp.server.commands.base import Command
from kvmdbg.rsp.server.commands.monitor import Monitor
from kvmdbg.rsp.server.commands.session import Detach, Supported
from kvmdbg.rsp.server.replies import Memory
from kvmdbg.rsp.server.session import ServerSession
from kvmdbg.rsp.stops import Exited, Stopped
from kvmdbg.rsp.threadid import ThreadSpec
from tests.support.naive_rsp import packet

TWO = ThreadSpec(ThreadId(2), 1)


def is_in(client: ClientSession, state: ClientState) -> bool:
    """Keeps mypy from believing that a state lasts."""
    return client.state is state


def test_request_and_reply() -> None:
    client = ClientSession()
    assert client.request(b"g") == b"$g#67"
    assert client.receive_data(b"+" + packet(b"00")) == [Reply(b"00")]
    assert client.data_to_send() == b"+"
    assert is_in(client, ClientState.IDLE)


def test_one_request_at_a_time() -> None:
    client = ClientSession()
    client.request(b"g")
    with pytest.raises(LocalProtocolError):
        client.request(b"g")


def test_what_comes_before_the_ack_answers_nothing_and_is_acknowledged() -> None:
    client = ClientSession()
    client.request(b"?")
    assert client.receive_data(packet(b"T02thread:01;")) == [Unsolicited(b"T02thread:01;")]
    assert client.receive_data(b"+" + packet(b"T05")) == [Reply(b"T05")]
    assert client.data_to_send() == b"++"


def test_unsolicited_while_idle() -> None:
    client = ClientSession()
    assert client.receive_data(packet(b"T02")) == [Unsolicited(b"T02")]
    assert is_in(client, ClientState.IDLE)


def test_resumption_output_and_stop() -> None:
    client = ClientSession()
    client.resume(requests.vcont([("s", TWO), ("c", None)]))
    assert is_in(client, ClientState.RESUMING)
    assert client.receive_data(b"+" + packet(b"O6869")) == [Output("hi")]
    assert is_in(client, ClientState.RUNNING)
    assert client.interrupt() == b"+\x03"
    assert client.receive_data(packet(b"T02thread:p1.2;")) == [Stop(Stopped(2, TWO))]
    assert is_in(client, ClientState.IDLE)


def test_a_refused_resumption() -> None:
    client = ClientSession()
    client.resume(b"vCont;r1,2")
    assert client.receive_data(b"+" + packet(b"E22")) == [Reply(b"E22")]
    assert is_in(client, ClientState.IDLE)


def test_the_end_is_a_stop() -> None:
    client = ClientSession()
    client.resume(b"vCont;c")
    assert client.receive_data(b"+" + packet(b"W00")) == [Stop(Exited(0))]


def test_monitor_output_precedes_ok() -> None:
    client = ClientSession()
    client.request(requests.monitor("info status"))
    assert client.receive_data(b"+" + packet(b"O410a") + packet(b"OK")) == [
        Output("A\n"),
        Reply(b"OK"),
    ]
    assert client.data_to_send() == b"++"


def test_resend_both_ways() -> None:
    client = ClientSession()
    client.request(b"g")
    assert client.receive_data(b"-") == []
    assert client.data_to_send() == b"$g#67"
    assert client.receive_data(b"+$00#00") == []
    assert client.data_to_send() == b"-"
    assert client.receive_data(packet(b"00")) == [Reply(b"00")]


def test_a_stub_that_refuses_everything() -> None:
    client = ClientSession()
    client.request(b"g")
    with pytest.raises(RemoteProtocolError):
        client.receive_data(b"-" * (MAX_RESENDS + 1))


def test_unreadable_packets_and_stops() -> None:
    with pytest.raises(RemoteProtocolError):
        ClientSession().receive_data(packet(b"}")[:1] + b"}#7d")
    client = ClientSession()
    client.resume(b"vCont;c")
    with pytest.raises(RemoteProtocolError):
        client.receive_data(b"+" + packet(b"T0"))


def test_notifications_and_garbage_pass_through() -> None:
    assert ClientSession().receive_data(b"??%S#53+") == [Garbage(2), Notification(b"S")]


def test_closed_is_closed() -> None:
    client = ClientSession()
    client.close()
    client.close()
    with pytest.raises(LocalProtocolError):
        client.request(b"g")


REQUESTS: list[tuple[bytes, Command]] = [
    (requests.STOP_REASON, resume.StopReasonQuery()),
    (requests.READ_REGISTERS, registers.ReadRegisters()),
    (requests.FIRST_THREADS, threads.FirstThreads()),
    (requests.NEXT_THREADS, threads.NextThreads()),
    (requests.supported(["multiprocess+", "x=1"]), Supported({"multiprocess": "+", "x": "1"})),
    (requests.select_thread(TWO), threads.SelectThread(threads.Purpose.ACCESS, TWO)),
    (requests.read_register(0x20), registers.ReadRegister(0x20)),
    (requests.write_register(3, b"\x01\x00"), registers.WriteRegister(3, b"\x01\x00")),
    (requests.write_registers(b"\x01\x00"), registers.WriteRegisters(b"\x01\x00")),
    (requests.read_memory(0x1000, 20), memory.ReadMemory(Gva(0x1000), 20)),
    (requests.write_memory(0x1000, b"abc"), memory.WriteMemory(Gva(0x1000), b"abc")),
    (
        requests.insert_breakpoint(2, Gva(0x10), 8),
        breakpoints.InsertBreakpoint(2, Gva(0x10), 8),
    ),
    (requests.remove_breakpoint(2, Gva(0x10), 8), breakpoints.RemoveBreakpoint(2, Gva(0x10), 8)),
    (
        requests.vcont([("s", TWO), ("c", None)]),
        resume.VCont(
            (
                resume.ResumeAction(resume.ResumeKind.STEP, TWO),
                resume.ResumeAction(resume.ResumeKind.CONTINUE),
            )
        ),
    ),
    (requests.detach(), Detach(1)),
    (requests.monitor("info cpus"), Monitor("info cpus")),
    (requests.set_step_mode(7), stepping.StepMode(7)),
    (requests.QUERY_STEP_BITS, stepping.StepBitsQuery()),
    (requests.set_physical_memory_mode(physical=True), memory.PhysicalMode(physical=True)),
    (requests.read_features("a.xml", 16, 32), xfer.ReadObject("features", "a.xml", 16, 32)),
]


@pytest.mark.parametrize(("payload", "command"), REQUESTS)
def test_requests_as_our_own_server_reads_them(payload: bytes, command: Command) -> None:
    assert parse(payload) == command


def test_reading_replies() -> None:
    assert requests.error_number(b"E14") == 0x14
    assert requests.error_number(b"E.words") == 22
    assert requests.error_number(b"e141") is None
    assert requests.error_number(b"OK") is None
    assert requests.parse_threads(b"mp01.01,p1.2") == (ThreadSpec(ThreadId(1), 1), TWO)
    assert requests.parse_threads(b"l") == ()
    assert requests.parse_object_part(b"l<>") == (b"<>", True)
    assert requests.parse_object_part(b"m<") == (b"<", False)


@pytest.mark.parametrize("payload", [b"", b"m", b"mx", b"m1,", b"lx", b"m1;"])
def test_malformed_thread_lists(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        requests.parse_threads(payload)


def test_malformed_object_parts() -> None:
    with pytest.raises(RemoteProtocolError):
        requests.parse_object_part(b"E01")


def test_both_sides_understand_each_other() -> None:
    client, server = ClientSession(), ServerSession()
    (command,) = server.receive_data(client.request(requests.read_memory(0x10, 3)))
    assert command == memory.ReadMemory(Gva(0x10), 3)
    assert client.receive_data(server.send(Memory(b"abc"))) == [Reply(b"616263")]
    assert server.receive_data(client.data_to_send()) == []
