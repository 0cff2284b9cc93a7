"""Commands: what a client asks for, as typed values.

To add a packet: write its dataclass and parser in the file of its group, name the parser in
:data:`PARSERS`, and give it a handler in :mod:`kvmdbg.server`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands import (
    breakpoints,
    files,
    lldb,
    memory,
    monitor,
    registers,
    resume,
    session,
    stepping,
    threads,
    xfer,
)
from kvmdbg.rsp.server.commands.base import Command, MalformedCommand, UnknownCommand

Parser = Callable[[Fields], Command]

PARSERS: MappingProxyType[bytes, Parser] = MappingProxyType(
    {
        b"!": session.parse_extended_mode,
        b"?": resume.parse_stop_reason,
        b"b": resume.parse_back,
        b"c": resume.parse_c,
        b"C": resume.parse_c_signal,
        b"D": session.parse_detach,
        b"g": registers.parse_g,
        b"G": registers.parse_g_write,
        b"H": threads.parse_select,
        b"k": session.parse_k,
        b"m": memory.parse_m,
        b"M": memory.parse_m_write,
        b"p": registers.parse_p,
        b"P": registers.parse_p_write,
        b"qAttached": session.parse_attached,
        b"qC": threads.parse_current,
        b"QCatchSyscalls": session.parse_catch_syscalls,
        b"qCRC": memory.parse_crc,
        b"qfThreadInfo": threads.parse_first,
        b"qOffsets": session.parse_offsets,
        b"qqemu.PhyMemMode": memory.parse_physical_mode_query,
        b"Qqemu.PhyMemMode": memory.parse_physical_mode,
        b"qqemu.sstep": stepping.parse_step_mode_query,
        b"Qqemu.sstep": stepping.parse_step_mode,
        b"qqemu.sstepbits": stepping.parse_step_bits,
        b"Qqemu.sstepbits": stepping.parse_step_bits,  # so ask pwndbg and gef, to know a QEMU
        b"QEnableErrorStrings": lldb.parse_error_strings,
        b"qHostInfo": lldb.parse_host_info,
        b"QNonStop": session.parse_non_stop,
        b"qProcessInfo": lldb.parse_process_info,
        b"qRcmd": monitor.parse_monitor,
        b"qSearch": memory.parse_search,
        b"qsThreadInfo": threads.parse_next,
        b"qSupported": session.parse_supported,
        b"qSymbol": session.parse_symbol,
        b"QStartNoAckMode": session.parse_no_ack,
        b"QThreadEvents": threads.parse_thread_events,
        b"qThreadExtraInfo": threads.parse_extra_info,
        b"qTStatus": session.parse_trace_status,
        b"qXfer": xfer.parse_xfer,
        b"qWatchpointSupportInfo": lldb.parse_watchpoint_support,
        b"R": session.parse_restart,
        b"s": resume.parse_s,
        b"S": resume.parse_s_signal,
        b"T": threads.parse_alive,
        b"vAttach": session.parse_attach,
        b"vCont": resume.parse_vcont,
        b"vCont?": resume.parse_vcont_query,
        b"vCtrlC": resume.parse_stop_all,
        b"vFile": files.parse_file,
        b"vKill": session.parse_kill,
        b"vMustReplyEmpty": session.parse_must_reply_empty,
        b"vStopped": resume.parse_next_stop,
        b"x": memory.parse_x,
        b"X": memory.parse_x_write,
        b"z": breakpoints.parse_remove,
        b"Z": breakpoints.parse_insert,
    }
)
"""Every packet that is understood, by its name."""

# q, Q and v begin names of several letters; any other packet is named by its first byte.
_NAME = re.compile(rb"[qQv][A-Za-z.]*\??|.", re.DOTALL)


def parse(payload: bytes) -> Command:
    """The command that ``payload`` is; never raises."""
    match = _NAME.match(payload)
    parser = PARSERS.get(match[0]) if match else None
    if match is None or parser is None:
        return UnknownCommand(payload)
    fields = Fields(payload)
    fields.take(len(match[0]))
    try:
        return parser(fields)
    except RemoteProtocolError as error:
        return MalformedCommand(match[0].decode("ascii"), str(error))


__all__ = ["PARSERS", "Command", "MalformedCommand", "UnknownCommand", "parse"]
