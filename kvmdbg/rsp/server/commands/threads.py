"""``H T qC qfThreadInfo qsThreadInfo qThreadExtraInfo QThreadEvents``: threads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands.base import Command
from kvmdbg.rsp.threadid import ThreadSpec


class Purpose(Enum):
    """What a thread is chosen for; the value is the letter after ``H``."""

    ACCESS = b"g"
    RESUME = b"c"


@dataclass(frozen=True, slots=True)
class SelectThread(Command):
    """``H``: choose the thread for what follows."""

    purpose: Purpose
    thread: ThreadSpec


@dataclass(frozen=True, slots=True)
class ThreadAlive(Command):
    """``T``."""

    thread: ThreadSpec


@dataclass(frozen=True, slots=True)
class CurrentThread(Command):
    """``qC``."""


@dataclass(frozen=True, slots=True)
class FirstThreads(Command):
    """``qfThreadInfo``: begin the list of threads."""


@dataclass(frozen=True, slots=True)
class NextThreads(Command):
    """``qsThreadInfo``: go on with it."""


@dataclass(frozen=True, slots=True)
class ThreadExtraInfo(Command):
    """``qThreadExtraInfo``: a text about a thread."""

    thread: ThreadSpec


@dataclass(frozen=True, slots=True)
class ThreadEvents(Command):
    """``QThreadEvents``: shall threads that begin and end be reported?"""

    wanted: bool


def parse_select(fields: Fields) -> SelectThread:
    """``HgTHREAD-ID`` or ``HcTHREAD-ID``"""
    letter = fields.take(1)
    if letter not in (b"g", b"c"):
        raise RemoteProtocolError(f"threads are chosen for g or c, not {letter!r}")
    return SelectThread(Purpose(letter), _only_thread(fields))


def parse_alive(fields: Fields) -> ThreadAlive:
    """``TTHREAD-ID``"""
    return ThreadAlive(_only_thread(fields))


def parse_current(fields: Fields) -> CurrentThread:
    """``qC``"""
    fields.end()
    return CurrentThread()


def parse_first(fields: Fields) -> FirstThreads:
    """``qfThreadInfo``"""
    fields.end()
    return FirstThreads()


def parse_next(fields: Fields) -> NextThreads:
    """``qsThreadInfo``"""
    fields.end()
    return NextThreads()


def parse_extra_info(fields: Fields) -> ThreadExtraInfo:
    """``qThreadExtraInfo,THREAD-ID``"""
    fields.expect(b",")
    return ThreadExtraInfo(_only_thread(fields))


def parse_thread_events(fields: Fields) -> ThreadEvents:
    """``QThreadEvents:0`` or ``:1``"""
    return ThreadEvents(fields.flag())


def _only_thread(fields: Fields) -> ThreadSpec:
    thread = ThreadSpec.parse(fields)
    fields.end()
    return thread
