"""``python -m kvmdbg.target.diagram``: the run states, as a table made from :data:`PERMITS`."""

from __future__ import annotations

from dataclasses import fields

from kvmdbg.target.runstate import NEXT, PERMITS, Permits


def run_states() -> str:
    """Markdown: what each run state permits, and which event leads to it."""
    columns = [field.name for field in fields(Permits)]
    rows = [["run state", *columns, "led to by"], ["---"] * (len(columns) + 2)]
    for state, permits in PERMITS.items():
        events = ", ".join(event.value for event, to in NEXT.items() if to is state)
        marks = ["yes" if getattr(permits, column) else "" for column in columns]
        rows.append([f"`{state.value}`", *marks, events or "STOP, then `query-status`"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


if __name__ == "__main__":
    print(run_states(), end="")
