"""Addresses that the server can listen on: ``unix:PATH``, ``tcp:HOST:PORT``, ``pty:`` and
``serial:DEVICE``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from kvmdbg.errors import ListenError

_MAX_PATH = 107
"""Bytes in a unix socket's path: sun_path of sockaddr_un, less its NUL."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port on a loopback address; port 0 lets the kernel choose one."""

    host: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.host.version == 6 else str(self.host)
        return f"tcp:{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PtyAddress:
    """A pseudo-terminal that is made for it; ``path`` leads to it, or is asked for."""

    path: Path | None

    def __str__(self) -> str:
        return f"pty:{self.path or ''}"


@dataclass(frozen=True, slots=True)
class SerialAddress:
    """A serial line, at ``speed`` in bits per second, or as it is set up."""

    path: Path
    speed: int | None = None

    def __str__(self) -> str:
        return f"serial:{self.path}" + (f",{self.speed}" if self.speed is not None else "")


Address = UnixAddress | TcpAddress | PtyAddress | SerialAddress


def parse_address(text: str) -> Address:
    """Read an address. Raises ListenError."""
    scheme, _, rest = text.partition(":")
    match scheme:
        case "unix" if rest:
            return _unix(rest)
        case "tcp" if rest:
            return _tcp(text, rest)
        case "pty":
            return PtyAddress(Path(rest).absolute() if rest else None)
        case "serial" if rest:
            return _serial(text, rest)
        case _:
            raise ListenError(
                f"cannot listen on {text!r}: use unix:PATH, tcp:HOST:PORT with a loopback HOST, "
                "pty: or serial:DEVICE"
            )


def require_place(address: Address) -> None:
    """Raise ListenError where there is no such device, or no room for the socket or link.

    For whoever is about to boot a VM for it; that it can be used shows when it is opened.
    """
    match address:
        case SerialAddress(path=path) if not path.exists():
            raise ListenError(f"cannot listen on {address}: there is no {path}")
        case UnixAddress(path=Path() as path) | PtyAddress(path=Path() as path):
            if not path.parent.is_dir():
                raise ListenError(f"cannot listen on {address}: there is no folder {path.parent}")
            if path.exists() and not (path.is_socket() or path.is_symlink()):
                raise ListenError(f"cannot listen on {address}: there is something else already")
        case _:
            pass


def _unix(text: str) -> UnixAddress:
    path = Path(text).absolute()
    if len(bytes(path)) > _MAX_PATH:
        raise ListenError(
            f"cannot listen on {path}: a unix socket's path has at most {_MAX_PATH} bytes, "
            "choose a shorter one"
        )
    return UnixAddress(path)


def _serial(text: str, rest: str) -> SerialAddress:
    device, comma, speed = rest.partition(",")
    if not device or (comma and not (speed.isascii() and speed.isdigit())):
        raise ListenError(f"cannot listen on {text!r}: use serial:DEVICE or serial:DEVICE,SPEED")
    return SerialAddress(Path(device).absolute(), int(speed) if comma else None)


def _tcp(text: str, rest: str) -> TcpAddress:
    host, _, port = rest.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 0xFFFF):
        raise ListenError(f"cannot listen on {text!r}: {port!r} is no TCP port, use 0 to 65535")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ListenError(
            f"cannot listen on {text!r}: {host!r} is no IP address, use 127.0.0.1 or [::1]"
        ) from None
    if not address.is_loopback:
        raise ListenError(
            f"cannot listen on {text!r}: only loopback is allowed, since RSP knows no passwords; "
            "use tcp:127.0.0.1:PORT and ssh's port forwarding"
        )
    return TcpAddress(address, int(port))
