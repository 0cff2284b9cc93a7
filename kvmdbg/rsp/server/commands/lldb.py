"""``qHostInfo qProcessInfo qWatchpointSupportInfo QEnableErrorStrings``: what only lldb asks.

Source: LLDB, docs/resources/lldbgdbremote.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands.base import Command


@dataclass(frozen=True, slots=True)
class HostInfo(Command):
    """``qHostInfo``: what machine is it that is debugged?"""


@dataclass(frozen=True, slots=True)
class ProcessInfo(Command):
    """``qProcessInfo``: what process is it?"""


@dataclass(frozen=True, slots=True)
class WatchpointSupport(Command):
    """``qWatchpointSupportInfo``: how many watchpoints are there?"""


@dataclass(frozen=True, slots=True)
class EnableErrorStrings(Command):
    """``QEnableErrorStrings``: errors are to come with a text."""


def parse_host_info(fields: Fields) -> HostInfo:
    """``qHostInfo``"""
    fields.end()
    return HostInfo()


def parse_process_info(fields: Fields) -> ProcessInfo:
    """``qProcessInfo``"""
    fields.end()
    return ProcessInfo()


def parse_watchpoint_support(fields: Fields) -> WatchpointSupport:
    """``qWatchpointSupportInfo:``"""
    fields.expect(b":")
    fields.end()
    return WatchpointSupport()


def parse_error_strings(fields: Fields) -> EnableErrorStrings:
    """``QEnableErrorStrings``"""
    fields.end()
    return EnableErrorStrings()
