"""One RSP client: parse, execute, reply; while the VM runs, only Ctrl-C and the VM's events.

One task deals with the inbox, in order: commands and Ctrl-C of the client, events of the VM.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from kvmdbg.errors import KvmdbgError, RemoteProtocolError, VmGone, VmRunning
from kvmdbg.rsp.server.commands import Command, MalformedCommand, files, resume, xfer
from kvmdbg.rsp.server.commands.monitor import Monitor
from kvmdbg.rsp.server.replies import ConsoleOutput, Ok, Reply
from kvmdbg.rsp.server.session import InterruptRequest
from kvmdbg.rsp.server.states import SessionState
from kvmdbg.server.client import Client, Goodbye, Outcome, Printed, Running, Silent
from kvmdbg.server.connection import Connection, HangUp, Item, Lasting, Ready
from kvmdbg.server.failures import error_reply, is_worth_telling
from kvmdbg.server.handlers.stepping import restore_step_mode
from kvmdbg.server.report import end_reply, explain, nonstop_reply, tell_stop
from kvmdbg.server.table import execute
from kvmdbg.target.events import Gone, Notice, Stopped
from kvmdbg.target.nonstop import NonStop
from kvmdbg.target.stops import Paused, Stepped, Stop

log = logging.getLogger(__name__)

_MAX_NOTICES = 100
"""Notices kept for a client whose target is stopped; the oldest are dropped."""

_PASSING = 0.2
"""Seconds that a step has to last to be shown to those who look."""

_BEARINGS = 3.0
"""Seconds from the answer to ``?`` in non-stop mode to the stops of other threads, for a client
that asks for nothing else. One that comes while gdb (13 to 18) still waits for the first makes it
fail an assertion, in remote_target::wait."""

_CONNECTING = (
    *(resume.StopReasonQuery, resume.NextStop, xfer.ReadObject),
    *(files.SetFilesystem, files.OpenFile, files.FileStatus, files.ReadFile, files.CloseFile),
)
"""What gdb asks for before that wait is over; the next is about the thread that has stopped."""

_RESUMING = (resume.VCont, resume.ResumeThread)

_OUTPUT_PIECE = 2000
"""Characters of console output per packet: any client can take that."""


class Session:
    """Serves one admitted client until it leaves."""

    def __init__(self, client: Client, connection: Connection) -> None:
        self._client = client
        self._connection = connection
        self._notices: deque[str] = deque(maxlen=_MAX_NOTICES)
        self._over = False
        self._kill = False
        self._is_connecting = False
        self.orderly = False
        client.is_there = lambda: connection.rsp.state is not SessionState.CLOSED

    async def run(self) -> None:
        """Stop the VM, which the client holds already, serve, and leave no trace."""
        vm = self._client.vm
        unsubscribe = vm.subscribe(self._connection.inbox.put_nowait)
        try:
            await self._stop_vm()
            self._client.shown(await vm.pause())
            self._connection.start()
            while not self._over:
                await self._handle(await self._connection.inbox.get())
        finally:
            unsubscribe()
            await self._leave()

    async def _leave(self) -> None:
        """Also when the client crashed: the guest is left unpatched, and running."""
        client = self._client
        self._connection.close()
        restore_step_mode(client)
        try:
            if self._kill or client.killed:
                await client.host.kill()
            await client.release()
        except KvmdbgError as error:
            log.warning("after %s left: %s", client.id, error)

    async def _handle(self, item: Item) -> None:
        match item:
            case Command():
                self._answer(await self._execute(item))
                if self._client.non_stop is not None and not isinstance(item, _CONNECTING):
                    self._client.non_stop.client_ready()
                await self._notify()
            case InterruptRequest():
                await self._interrupt()
            case Ready() if self._client.non_stop is not None:
                self._client.non_stop.client_ready()
                await self._notify()
            case Stopped() if self._client.non_stop is not None:
                await self._go_on_without(self._client.non_stop)
            case Stopped(stop) if self._client.waits and stop.reason == Stepped():
                self._report_if_it_lasts(stop)
            case Stopped(stop) | Lasting(stop):
                if stop is self._client.vm.stop and stop is not self._client.seen:
                    await self._report(stop)
            case Notice(text):
                self._tell(text)
            case Gone():
                self._tell(item.sentence(self._client.vm.name))
                if self._is_running:
                    self._connection.send(end_reply(item))
                elif self._client.non_stop is not None:
                    self._connection.notify(end_reply(item))
                self._over = self.orderly = True
            case HangUp():
                self._over = True
            case _:
                pass

    @property
    def _is_running(self) -> bool:
        return self._connection.rsp.state is SessionState.RUNNING

    async def _execute(self, command: Command) -> Outcome:
        try:
            if isinstance(command, MalformedCommand):
                raise RemoteProtocolError(f"malformed packet {command.name}: {command.reason}")
            return await execute(self._client, command)
        except KvmdbgError as error:
            self._explain(command, error)
            return error_reply(error)

    def _explain(self, command: Command, error: KvmdbgError) -> None:
        """For a client that shows numbers only: say it on the console, as soon as that may be.
        lldb shows texts, but those of monitor commands in hex."""
        agreed = self._connection.rsp.negotiated
        if agreed.error_message:
            return
        if isinstance(command, Monitor):
            self._print(f"{error}\n")
        elif isinstance(command, _RESUMING) and self._client.non_stop is None:
            self._print(f"kvmdbg: {error}\n")  # it waits for the VM, and shows what comes meanwhile
        elif agreed.error_strings or str(error) in self._notices:  # gdb asks many times
            return
        elif is_worth_telling(error):
            self._notices.append(str(error))

    def _answer(self, outcome: Outcome) -> None:
        if self._connection.rsp.state is SessionState.CLOSED:
            return  # it hung up meanwhile; the inbox says so
        match outcome:
            case Running(words):
                self._connection.running()
                self._flush_notices()
                if words:
                    self._tell(words)
                stop = self._client.vm.stop
                if self._client.waits and stop is not None and stop is not self._client.seen:
                    self._report_if_it_lasts(stop)
            case Printed(text):
                self._flush_notices()
                self._print(text)
                self._connection.send(Ok())
            case Silent():
                self._connection.stay_silent()
            case Goodbye(reply, kill):
                self._say_goodbye(reply, kill)
            case _:
                self._connection.send(outcome)

    def _say_goodbye(self, reply: Reply | None, kill: bool) -> None:
        if reply is None:
            self._connection.stay_silent()
        else:
            self._connection.send(reply)
        self._over = self.orderly = True
        self._kill = kill

    async def _interrupt(self) -> None:
        """Ctrl-C: the Stopped that follows, or has come first, is the answer; a client that waits
        for the next stop of a VM that is stopped gets this one again."""
        self._client.pretends = None
        try:
            was_stopped = self._client.vm.stop is not None
            await self._stop_vm()
        except VmGone:
            return  # the inbox says so
        except KvmdbgError as error:
            self._tell(str(error))
            return
        stop = self._client.vm.stop
        if was_stopped and not self._client.drives and stop is not None:
            await self._report(Stop(stop.vcpu, Paused()))
            self._client.seen = stop

    async def _go_on_without(self, non_stop: NonStop) -> None:
        """A vCPU has stopped, or all of them; tell while the VM is stopped, which is quicker."""
        try:
            non_stop.take()
            await self._notify()
            await non_stop.update()
            await self._notify()
        except KvmdbgError as error:
            self._tell(str(error))

    async def _notify(self) -> None:
        """In non-stop mode: begin to tell what is untold; the client asks for the rest of it."""
        non_stop = self._client.non_stop
        if non_stop is None or non_stop.telling:
            return
        if non_stop.for_later:
            if not self._is_connecting:
                self._is_connecting = True
                put = self._connection.inbox.put_nowait
                asyncio.get_running_loop().call_later(_BEARINGS, put, Ready())
            return
        self._is_connecting = False
        if not non_stop.untold:
            return
        if self._connection.rsp.state is SessionState.CLOSED:
            return
        non_stop.telling = True
        first = non_stop.untold[0]
        try:
            reply = await nonstop_reply(self._client, first.stop, first.hit)
        except VmGone:
            return  # the inbox says so
        self._connection.notify(reply)

    async def _stop_vm(self) -> None:
        """Stop the VM; who drives it is told why."""
        client = self._client
        if client.vm.stop is None and not client.drives:
            client.vm.notice(f"{client.id} stopped the VM")
        await client.vm.pause()

    def _report_if_it_lasts(self, stop: Stop) -> None:
        """Of the step of another client: debuggers make many on their own account, off
        breakpoints and through lines, and go on at once."""
        put = self._connection.inbox.put_nowait
        asyncio.get_running_loop().call_later(_PASSING, put, Lasting(stop))

    async def _report(self, stop: Stop) -> None:
        if not self._is_running:
            return
        client = self._client
        try:
            reply = await tell_stop(client, stop)
        except (VmGone, VmRunning):
            return  # that is over already, and the inbox says what came then
        words = explain(client.vm, stop.reason, client.id)
        if words and client.seen is stop:
            self._tell(words)
        if self._is_running:
            self._connection.send(reply)

    def _tell(self, text: str) -> None:
        """Tell the user as soon as the protocol allows."""
        self._notices.append(text)
        if self._is_running:
            self._flush_notices()

    def _flush_notices(self) -> None:
        while self._notices:
            self._print(f"kvmdbg: {self._notices.popleft()}\n")

    def _print(self, text: str) -> None:
        if not self._client.is_there():
            return
        for start in range(0, len(text), _OUTPUT_PIECE):
            self._connection.send(ConsoleOutput(text[start : start + _OUTPUT_PIECE]))
