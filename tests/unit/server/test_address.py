"""Addresses to listen on."""

import os
from pathlib import Path

import pytest

from kvmdbg.errors import ListenError
from kvmdbg.server.address import UnixAddress, parse_address, require_place


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("tcp:127.0.0.1:1234", "tcp:127.0.0.1:1234"),
        ("tcp:127.9.9.9:0", "tcp:127.9.9.9:0"),
        ("tcp:localhost:1", "tcp:127.0.0.1:1"),
        ("tcp:[::1]:65535", "tcp:[::1]:65535"),
        ("tcp:::1:80", "tcp:[::1]:80"),
        ("pty", "pty:"),
        ("pty:", "pty:"),
        ("pty:/run/line", "pty:/run/line"),
        ("serial:/dev/ttyS0", "serial:/dev/ttyS0"),
        ("serial:/dev/ttyUSB1,115200", "serial:/dev/ttyUSB1,115200"),
    ],
)
def test_good(text: str, meaning: str) -> None:
    assert str(parse_address(text)) == meaning


@pytest.mark.parametrize("scheme", ["unix", "pty", "serial"])
def test_a_place_that_is_not_there(scheme: str, tmp_path: Path) -> None:
    require_place(parse_address("pty:"))
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to("there")
    require_place(parse_address(f"{scheme}:{tmp_path}/link"))
    if scheme != "serial":
        with pytest.raises(ListenError, match="something else already"):
            require_place(parse_address(f"{scheme}:{tmp_path}/there"))
    with pytest.raises(ListenError, match=r"there is no .*missing"):
        require_place(parse_address(f"{scheme}:{tmp_path}/missing/x"))


def test_relative_paths_are_made_absolute() -> None:
    assert parse_address("unix:a:b") == UnixAddress(Path(os.getcwd(), "a:b"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "use unix:PATH, tcp:"),
        ("unix:", "use unix:PATH"),
        ("serial:", "or serial:DEVICE"),
        ("serial:/dev/ttyS0,", "or serial:DEVICE,SPEED"),
        ("serial:/dev/ttyS0,fast", "serial:DEVICE,SPEED"),
        ("serial:,9600", "serial:DEVICE,SPEED"),
        (":1234", "use unix:PATH"),
        ("tcp:1234", "no IP address"),
        ("tcp:127.0.0.1:", "no TCP port"),
        ("tcp:127.0.0.1:65536", "no TCP port"),
        ("tcp:127.0.0.1:²", "no TCP port"),
        ("tcp:example.org:1", "no IP address"),
        ("tcp:0.0.0.0:1", "only loopback"),
        ("tcp:[::]:1", "only loopback"),
        ("tcp:192.168.1.1:1", "only loopback"),
        ("unix:/" + "x" * 200, "at most 107 bytes"),
    ],
)
def test_bad(text: str, reason: str) -> None:
    with pytest.raises(ListenError, match=reason):
        parse_address(text)
