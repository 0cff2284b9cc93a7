"""Pinned Debian packages: resolved once, then fetched by exact version and checked by hash.

The lab wants Debian 12 and its backports whatever this machine runs, so apt's private folder has
one source: the machine's own Debian mirror, with the two suites. ``bookworm`` alone, without
updates, changes only at point releases, so that pins stay valid.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from kvmdbg.errors import ImageError
from kvmdbg.images.apt import Apt, Package, read_record
from kvmdbg.images.tools import find_tool, last_words, tool_environment
from kvmdbg.progress import Progress
from tests.lab.errors import LabError

SUITE = "bookworm"
BACKPORTS = f"{SUITE}-backports"

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# A backport is taken only where it is asked for; apt's default for them is the same.
_PREFERENCES = f"""\
Package: *
Pin: release n={SUITE}
Pin-Priority: 500

Package: *
Pin: release n={BACKPORTS}
Pin-Priority: 100
"""


class LabApt(Apt):
    """apt on a private folder whose only source is Debian 12, from the machine's own mirror."""

    def __init__(self, folder: Path, arch: str) -> None:
        super().__init__(folder, arch)
        self._machine = Apt(folder / "machine", arch)

    def update(self, progress: Progress) -> None:
        """Fetch the indexes. Raises LabError when the machine's apt knows no Debian mirror."""
        self._machine.update(progress)
        super().update(progress)

    def _configure(self) -> None:
        super()._configure()
        sources = self._folder / "sources"
        sources.mkdir(exist_ok=True)
        signed_by = f"Signed-By: {_KEYRING}\n" if _KEYRING.exists() else ""
        (sources / "lab.sources").write_text(
            f"Types: deb\nURIs: {self._mirror()}\nSuites: {SUITE} {BACKPORTS}\n"
            f"Components: main\n{signed_by}"
        )
        (self._folder / "preferences").write_text(_PREFERENCES)
        with self._config.open("a") as config:
            config.write('Dir::Etc::sourcelist "/dev/null";\n')
            config.write(f'Dir::Etc::sourceparts "{sources}";\n')

    def _mirror(self) -> str:
        """URI of the mirror that the machine takes Debian's ``main`` from."""
        wanted = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"
        targets = self._machine.ask("apt-get", "indextargets", "--format", wanted).stdout
        for line in targets.splitlines():
            if line.startswith("Debian|Debian|main|"):
                return line.rpartition("|")[2]
        raise LabError(
            "this machine's apt configuration has no source of Debian's own packages, which the "
            "lab is made of: add one for Debian 12 (bookworm) and try again"
        )

    def resolve(self, names: Iterable[str], *, backports: bool = False) -> list[Package]:
        """The packages and all that they depend on, as apt would install them on nothing.

        Raises LabError.
        """
        release = ("-t", BACKPORTS) if backports else ()
        install = ("install", "--print-uris", "-y", "--no-install-recommends", *release)
        listed = self.ask("apt-get", *install, *names)
        if listed.returncode != 0:
            raise LabError(
                f"apt cannot resolve the lab's packages: {last_words(listed.stderr.encode())}"
            )
        files = re.findall(r"^'[^']*' (\S+)_(\S+)_\S+\.deb ", listed.stdout, re.MULTILINE)
        exact = [f"{name}={version.replace('%3a', ':')}" for name, version in files]
        records = self.ask("apt-cache", "show", *exact).stdout.strip().split("\n\n")
        return sorted({read_record(record) for record in records}, key=lambda p: p.name)

    def fetch_pinned(self, packages: Iterable[Package], progress: Progress) -> None:
        """Download exactly these versions into the current state's folder, in one go.

        Raises LabError when the mirror no longer has one of them.
        """
        exact = [f"{p.name}:{p.arch}={p.version}" if p.arch != "all" else f"{p.name}={p.version}"
                 for p in packages]  # fmt: skip
        progress.step(f"downloading {len(exact)} Debian packages")
        done = subprocess.run(
            [find_tool("apt-get"), "-c", str(self._config), "-q", "download", *exact],
            cwd=self._debs,
            env=tool_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode == 0:
            return
        words = last_words(done.stderr)
        if gone := re.search(r"Version '(.+)' for '(.+)' was not found", words):
            raise LabError(
                f"the mirror no longer has {gone[2]} {gone[1]}, which the lab pins: run "
                "'make lab-update' to pin what it has now, and commit tests/lab/pins"
            )
        why = f" (apt-get update said: {self._complaint})" if self._complaint else ""
        raise LabError(f"cannot download the lab's packages: apt says {words!r}{why}: try again")


class DebCache:
    """The pinned packages in the user's cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ensure(self, packages: Iterable[Package], arch: str, progress: Progress) -> list[Path]:
        """The files of the packages, fetched where missing, each checked by hash.

        Raises LabError.
        """
        packages = list(packages)
        apt = LabApt(self._folder / "apt" / arch, arch)
        debs = self._folder / "apt" / arch / "debs"
        try:
            with apt.locked(progress):
                if missing := [p for p in packages if not matches(debs / p.filename, p.sha256)]:
                    for package in missing:
                        (debs / package.filename).unlink(missing_ok=True)
                    apt.update(progress)
                    apt.fetch_pinned(missing, progress)
        except ImageError as error:
            raise LabError(str(error)) from error
        for package in missing:
            if not matches(debs / package.filename, package.sha256):
                raise LabError(
                    f"{package.filename} from the mirror is not the file that the lab pins "
                    f"(SHA-256 {package.sha256}): run 'make lab-update' if Debian has changed it"
                )
        return [debs / p.filename for p in packages]


def matches(path: Path, sha256: str) -> bool:
    """Whether the file is there with that hash."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False
