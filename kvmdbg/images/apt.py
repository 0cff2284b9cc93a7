"""Debian packages through apt, without root and without touching the machine's own apt state.

apt runs with a private state folder and an empty dpkg status. Sources, keys, proxies and
credentials are those of the machine's own configuration, so no host is named here, and
signatures are verified as always. Only sources whose Release file says ``Origin: Debian`` count.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvmdbg.errors import ImageError
from kvmdbg.images.ports import PORTS
from kvmdbg.images.tools import find_tool, last_words, tool_environment
from kvmdbg.progress import Progress

# Read with -c, that is after the machine's own configuration. The hooks belong to the machine
# (docker-clean's would empty its package cache); of the indexes we need Packages alone.
_CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
#clear Acquire::IndexTargets;
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Get::AllowUnauthenticated "false";
APT::Sandbox::User "root";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Packages {{
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  flatMetaKey "Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
  Optional "0";
}};
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::preferences "{folder}/preferences";
Dir::Etc::preferencesparts "/dev/null";
"""

_PREFERENCES = """\
Package: *
Pin: release o=Debian
Pin-Priority: 500

Package: *
Pin: release *
Pin-Priority: -1
"""


@dataclass(frozen=True)
class Package:
    """One version of a package, as the signed index describes it."""

    name: str
    version: str
    arch: str
    sha256: str
    size: int  # bytes
    depends: str

    @property
    def filename(self) -> str:
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.arch}.deb"


def read_record(text: str) -> Package:
    """The package of one record of ``apt-cache show``."""
    fields = dict(re.findall(r"^(\S+): (.*)$", text, re.MULTILINE))
    return Package(
        name=fields["Package"],
        version=fields["Version"],
        arch=fields["Architecture"],
        sha256=fields["SHA256"],
        size=int(fields["Size"]),
        depends=fields.get("Depends", ""),
    )


class Apt:
    """apt on a private folder, for one architecture."""

    def __init__(self, folder: Path, arch: str) -> None:
        self._folder = folder
        self._arch = PORTS[arch].name
        self._config = folder / "apt.conf"
        self._debs = folder / "debs"
        self._complaint = ""

    @contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """Keep other builders off the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.note("waiting for another kvmdbg that is fetching packages")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def update(self, progress: Progress) -> None:
        """Fetch the indexes.

        A failure is remembered, not raised: some third-party source may be unreachable, or the
        indexes of the last time may do.
        """
        self._configure()
        progress.step("fetching Debian's package index")
        done = subprocess.run(
            [find_tool("apt-get"), "-c", str(self._config), "-q", "update"],
            env=tool_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        self._complaint = last_words(done.stderr) if done.stderr.strip() else ""

    def _configure(self) -> None:
        for folder in ("state/lists/partial", "cache/archives/partial", "debs"):
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").write_bytes(b"")
        (self._folder / "preferences").write_text(_PREFERENCES)
        self._config.write_text(_CONFIG.format(arch=self._arch, folder=self._folder))

    def ask(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of apt's (``apt-cache``) on the private folder."""
        return subprocess.run(
            [find_tool(tool), "-c", str(self._config), *arguments],
            env=tool_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def find(self, name: str) -> Package:
        """The version of a package that apt would install."""
        done = self.ask("apt-cache", "show", "--no-all-versions", name)
        # Unknown: status 100. Known only to sources that do not count: status 0 and no record.
        if done.returncode != 0 or not done.stdout.strip():
            why = f" (apt-get update said: {self._complaint})" if self._complaint else ""
            raise ImageError(
                f"no Debian source in this machine's apt configuration has the package {name}"
                f"{why}: check the sources and the network"
            )
        return read_record(done.stdout)

    def find_kernel(self, name: str) -> Package:
        """The kernel package that *name* is, or that the metapackage *name* depends on."""
        package = self.find(name)
        concrete = re.search(r"\blinux-image-[^\s,]+", package.depends)
        return self.find(concrete[0]) if concrete else package

    def fetch(self, package: Package, progress: Progress) -> Path:
        """Download a package, unless it is there; its file, with the hash of the signed index."""
        target = self._debs / package.filename
        if not (target.exists() and _sha256(target) == package.sha256):
            target.unlink(missing_ok=True)
            self._download(package, progress)
        if not target.exists() or _sha256(target) != package.sha256:
            raise ImageError(
                f"the package {package.filename} is not what Debian's signed index describes: "
                "try again"
            )
        return target

    def _download(self, package: Package, progress: Progress) -> None:
        what = f"downloading {package.name} {package.version}"
        progress.step(what, 0, package.size)
        read_end, write_end = os.pipe()
        with tempfile.TemporaryFile() as errors, os.fdopen(read_end) as status:
            with os.fdopen(write_end, "wb"):
                process = subprocess.Popen(
                    [
                        *(find_tool("apt-get"), "-c", str(self._config), "-q"),
                        *("-o", f"APT::Status-Fd={write_end}"),
                        *("download", f"{package.name}={package.version}"),
                    ],
                    cwd=self._debs,
                    env=tool_environment(),
                    pass_fds=[write_end],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            with process:
                # apt's README.progress-reporting: dlstatus:<item>:<percent>:<text>
                for line in status:
                    if percent := re.match(r"dlstatus:\d+:([\d.]+):", line):
                        progress.step(
                            what, int(package.size * float(percent[1]) / 100), package.size
                        )
            if process.returncode != 0:
                errors.seek(0)
                raise ImageError(
                    f"cannot download the package {package.name}: apt says "
                    f"{last_words(errors.read())!r}: check the network and try again"
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
