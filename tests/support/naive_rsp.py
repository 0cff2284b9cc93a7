"""A second opinion on RSP framing: written from the manual, byte by byte, sharing no code with
kvmdbg.rsp. Slow and short on purpose."""

from __future__ import annotations


def packet(payload: bytes) -> bytes:
    """Frame a payload, escaping where needed."""
    wire = b""
    for byte in payload:
        wire += bytes([0x7D, byte ^ 0x20]) if chr(byte) in "#$}*" else bytes([byte])
    return b"$" + wire + b"#" + format(sum(wire) % 256, "02x").encode()


def payload(wire: bytes) -> bytes:
    """The payload of exactly one packet, as gdb reads it: runs first, then escapes."""
    assert wire[:1] == b"$"
    assert wire[-3:-2] == b"#"
    body = wire[1:-3]
    assert b"$" not in body
    assert b"#" not in body
    assert int(wire[-2:], 16) == sum(body) % 256
    expanded: list[int] = []
    index = 0
    while index < len(body):
        if body[index] == ord("*"):
            expanded += [expanded[-1]] * (body[index + 1] - 29)
            index += 2
        else:
            expanded.append(body[index])
            index += 1
    plain: list[int] = []
    index = 0
    while index < len(expanded):
        if expanded[index] == 0x7D:
            plain.append(expanded[index + 1] ^ 0x20)
            index += 2
        else:
            plain.append(expanded[index])
            index += 1
    return bytes(plain)
