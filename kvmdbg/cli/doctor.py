"""``kvmdbg doctor``: what this host's KVM and QEMU really do, what follows, and what helps."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import msgspec

from kvmdbg.machine.doctor import Finding, Report, examine
from kvmdbg.machine.verdict import remember

_COLOURS = {"ok": "green", "note": "dim", "limit": "yellow", "fail": "red"}


def run(*, as_json: bool) -> int:
    """Examine the host; 0 usable, 1 usable with limits, 2 not."""
    report = examine()
    remember(report)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    elif sys.stdout.isatty():
        _show_table(report)
    else:
        print("\n".join(_plain_lines(report)))
    return report.status


def _show_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in report.findings:
        found = Text(finding.found)
        if finding.follows:
            found.append(f"\n→ {finding.follows}", style="italic")
        state = Text(finding.state, style=_COLOURS[finding.state])
        table.add_row(state, finding.title, found)
    console = Console()
    console.print(table)
    for fix, titles in _fixes(report.findings).items():
        console.print(Text.assemble("\n", (", ".join(titles), "bold"), f":\n  {fix}"))
    console.print(Text.assemble("\n", (report.verdict, "bold"), f" ({report.seconds:.2f} s)"))


def _plain_lines(report: Report) -> Iterable[str]:
    width = max(len(finding.title) for finding in report.findings)
    for finding in report.findings:
        yield f"{finding.state:<5}  {finding.title:<{width}}  {finding.found}"
        if finding.follows:
            yield " " * (width + 9) + f"-> {finding.follows}"
    for fix, titles in _fixes(report.findings).items():
        yield f"fix    {', '.join(titles)}: {fix}"
    yield f"{report.verdict} ({report.seconds:.2f} s)"


def _fixes(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """Fix → the findings that it is for."""
    fixes: dict[str, list[str]] = {}
    for finding in findings:
        if finding.fix:
            fixes.setdefault(finding.fix, []).append(finding.title)
    return fixes
