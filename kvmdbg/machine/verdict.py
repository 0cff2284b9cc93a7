"""Doctor's verdict on KVM, kept for as long as the host runs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec

from kvmdbg import __version__
from kvmdbg.images import user_cache
from kvmdbg.kvm.local import KVM_DEVICE
from kvmdbg.machine.checks import checks_for
from kvmdbg.machine.doctor import Report, examine, failures
from kvmdbg.machine.hostfacts import device_facts
from kvmdbg.machine.probing import is_complete

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Verdict(msgspec.Struct, frozen=True):
    """Whether KVM debugs well enough here, and half a sentence that says why."""

    kvm: bool
    reason: str
    works: tuple[str, ...]
    """The checks (:mod:`~.checks`, by key) that it passes."""


class _Kept(msgspec.Struct, frozen=True):
    """The file: ``for_`` says what it holds for."""

    for_: tuple[str, ...]
    verdict: Verdict


def kvm_verdict() -> Verdict:
    """From the cache, or from the probes, which take about half a second."""
    trouble = device_facts(KVM_DEVICE).trouble
    if trouble is not None:  # cheap to find out, and quickly put right: not worth keeping
        return Verdict(False, trouble, ())
    return _recall() or remember(examine())


def remember(report: Report) -> Verdict:
    """Keep what doctor found, if it could look at everything."""
    works = [
        check.key for check in checks_for(report.flavour) if not failures(check, report.results)
    ]
    verdict = Verdict(report.kvm, report.reason, tuple(works))
    # Without a cache the next run takes longer; nothing else.
    with contextlib.suppress(OSError):
        if report.results and is_complete(report.results):
            _write(_file(), msgspec.json.encode(_Kept(_key(), verdict)))
    return verdict


def _recall() -> Verdict | None:
    try:
        kept = msgspec.json.decode(_file().read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return None
    return kept.verdict if kept.for_ == _key() else None


def _key() -> tuple[str, ...]:
    """What may change the verdict: another boot, another kvmdbg, another KVM module."""
    device = os.stat(KVM_DEVICE)
    return __version__, _BOOT_ID.read_text().strip(), f"{device.st_dev}:{device.st_ino}"


def _file() -> Path:
    return user_cache() / "kvm-verdict.json"


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing, whoever else writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as part:
        try:
            part.write(data)
            part.close()
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise
