"""What may be done to a run that is recorded, or that is a recording."""

from __future__ import annotations

from kvmdbg.errors import Unsupported
from kvmdbg.target.capabilities import Engine, History


def is_replayed(engine: Engine) -> bool:
    """True if the run is a recording, in which plans may go back."""
    execution = engine.execution
    return isinstance(execution, History) and execution.replayed


def require_replay(engine: Engine) -> None:
    """Raise Unsupported where nothing can go back."""
    if not is_replayed(engine):
        raise Unsupported(
            f"the engine {engine.name} cannot run backwards, because this run is no replay: record "
            "one with --record FILE, under TCG, and debug it with --replay FILE"
        )


def require_unrecorded(engine: Engine) -> None:
    """Raise Unsupported where a change from outside would not be in the recording."""
    execution = engine.execution
    if isinstance(execution, History) and execution.recorded:
        what = "is a replay" if execution.replayed else "is recorded"
        raise Unsupported(
            f"the run {what} and cannot be changed from outside, as a recording has nothing of "
            "that: debug the VM without --record or --replay"
        )
