"""What the lab raises on purpose."""

from __future__ import annotations

from kvmdbg.errors import KvmdbgError


class LabError(KvmdbgError):
    """The lab cannot be built, started or reached: one sentence, with what to do."""
