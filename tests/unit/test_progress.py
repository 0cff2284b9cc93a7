"""What a log shows of a build."""

import io

from kvmdbg.progress import PlainProgress


def test_one_line_per_step_and_note() -> None:
    log = io.StringIO()
    progress = PlainProgress(log)
    progress.note("building")
    for done in (0, 50, 100):
        progress.step("downloading a", done, 100)
    progress.step("packing")
    assert log.getvalue() == "building\ndownloading a\npacking\n"
