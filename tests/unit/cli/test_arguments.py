"""The command line's grammar."""

from __future__ import annotations

import pytest

from kvmdbg.cli.arguments import parse
from kvmdbg.cli.main import main
from kvmdbg.errors import UsageError


def test_everything_after_two_dashes_is_gdbs() -> None:
    arguments = parse(["--vm", "demo", "--gdb", "--", "-ex", "info threads", "--", "x"])
    assert arguments.gdb_args == ["-ex", "info threads", "--", "x"]


def test_the_vm_may_be_named_after_the_command() -> None:
    for argv in (["--vm", "demo", "console"], ["console", "--vm", "demo"]):
        assert (parse(argv).command, parse(argv).vm) == ("console", "demo")


def test_overrides_are_toml_values_or_plain_strings() -> None:
    arguments = parse(
        ["--vm", "demo", "--set", "cpus=2", "--set", "kaslr=true", "--set", "memory=1G"]
    )
    assert arguments.overrides == {"cpus": 2, "kaslr": True, "memory": "1G"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "which VM"),
        (["quit"], "which VM"),
        (["--vm", "", "--run"], "which VM"),
        (["--vm", "demo", "--gdb", "--stdio"], "not allowed with"),
        (["--vm", "demo", "--", "-x"], "say --gdb too"),
        (["--vm", "demo", "--set", "cpus"], "KEY=VALUE"),
        (["--vm", "demo", "--accel", "xen"], "invalid choice"),
        (["--vm", "demo", "--kee"], "unrecognized"),
        (["fly"], "invalid choice"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(argv: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse(argv)
    assert "\n" not in str(caught.value)


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvmdbg: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "kvmdbg" in capsys.readouterr().out
