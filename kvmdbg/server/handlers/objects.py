"""Objects that are read piece by piece; each function yields a whole one, by its annex."""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.server.client import Client, spec_of
from kvmdbg.server.handlers.threads import describe


class NoSuchAnnex(RemoteProtocolError):
    """The object exists, but not under that name."""


async def features(client: Client, annex: str) -> bytes:
    """``qXfer:features``"""
    if annex != "target.xml":
        raise NoSuchAnnex(f"there is no target description {annex!r}")
    client.described = True
    return client.vm.arch.target_xml.encode()


async def threads(client: Client, annex: str) -> bytes:
    """``qXfer:threads``"""
    multiprocess = client.has("multiprocess")
    lines = []
    for vcpu in client.vm.vcpus if client.has_process else ():
        name = spec_of(vcpu).encode(multiprocess=multiprocess).decode()
        lines.append(f'  <thread id="{name}" core="{vcpu}">{describe(vcpu)}</thread>')
    return "\n".join(('<?xml version="1.0"?>', "<threads>", *lines, "</threads>", "")).encode()


async def memory_map(client: Client, annex: str) -> bytes:
    """``qXfer:memory-map``: of physical memory; while addresses are virtual there is none, which to
    gdb means that there may be memory anywhere."""
    if not client.physical:
        raise NoSuchAnnex("the memory map is of physical memory: set Qqemu.PhyMemMode first")
    regions = await client.host.memory_map()
    lines = [
        f'  <memory type={quoteattr(region.kind.value)} start="{region.start:#x}"'
        f' length="{region.length:#x}"/>'
        for region in regions
    ]
    head = (
        '<?xml version="1.0"?>',
        '<!DOCTYPE memory-map PUBLIC "+//IDN gnu.org//DTD GDB Memory Map V1.0//EN"'
        ' "http://sourceware.org/gdb/gdb-memory-map.dtd">',
    )
    return "\n".join((*head, "<memory-map>", *lines, "</memory-map>", "")).encode()


async def exec_file(client: Client, annex: str) -> bytes:
    """``qXfer:exec-file``: the symbol file, which ``vFile`` serves."""
    return str(client.host.symbol_file).encode()
