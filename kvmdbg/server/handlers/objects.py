"""Objects that are read piece by piece."""

from __future__ import annotations

from kvmdbg.rsp.server.commands.xfer import ReadObject
from kvmdbg.rsp.server.replies import Empty, Error, ObjectPart, Reply
from kvmdbg.server.client import PACKET_SIZE, Client


async def read(client: Client, command: ReadObject) -> Reply:
    """``qXfer:OBJECT:read``"""
    if command.object != "features":
        return Empty()
    if command.annex != "target.xml":
        return Error(0)  # the number that the manual gives to an annex that is not there
    data = client.vm.arch.target_xml.encode()
    # Escaping may double the length.
    end = command.offset + min(command.length, PACKET_SIZE // 2)
    return ObjectPart(data[command.offset : end], last=end >= len(data))
