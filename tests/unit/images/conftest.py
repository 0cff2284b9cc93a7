"""A tiny Debian archive on the local disk, for apt to use instead of the machine's sources."""

import hashlib
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ARCH = "amd64"


class Archive:
    """A flat repository; ``trusted`` stands in for a signature."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: list[str] = []

    def add(
        self, name: str, version: str, files: Mapping[str, bytes], *, depends: str = ""
    ) -> None:
        tree = self.folder / f"{name}.tree"
        for path, content in {"usr/share/doc/README": b"", **files}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: {ARCH}\n"
        control += f"Depends: {depends}\n" if depends else ""
        control += "Maintainer: nobody <nobody@example.org>\nDescription: for a test\n"
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(control)
        deb = self.folder / f"{name}.deb"
        subprocess.run(["dpkg-deb", "-b", str(tree), str(deb)], check=True, capture_output=True)
        content = deb.read_bytes()
        self._records.append(
            f"{control}Filename: ./{deb.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
        self.publish()

    def publish(self, origin: str = "Debian") -> None:
        packages = "\n".join(self._records).encode()
        (self.folder / "Packages").write_bytes(packages)
        (self.folder / "Release").write_text(
            f"Origin: {origin}\nSuite: test\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n"
        )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    folder = tmp_path / "archive"
    folder.mkdir()
    return Archive(folder)


@pytest.fixture
def use_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make apt read these sources.list lines and nothing of this machine's configuration."""

    def use(lines: str) -> None:
        etc = tmp_path / "etc"
        etc.mkdir()
        (etc / "sources.list").write_text(lines)
        (etc / "apt.conf").write_text(
            f'Dir::Etc::sourcelist "{etc}/sources.list";\n'
            'Dir::Etc::sourceparts "/dev/null";\nDir::Etc::parts "/dev/null";\n'
        )
        monkeypatch.setenv("APT_CONFIG", str(etc / "apt.conf"))

    return use
