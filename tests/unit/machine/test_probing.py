"""The watchdogs around the probes, with children that misbehave."""

import sys
import time

from kvmdbg.machine.probing import Limits, supervise

# Runs the probes that it is given; some of them are not good for it.
_CHILD = """
import json, os, signal, sys, time
def say(*line): print(json.dumps(line), flush=True)
for name in sys.argv[1:]:
    say(name, None)
    if name == "hang": time.sleep(60)
    if name == "die": os.kill(os.getpid(), signal.SIGSEGV)
    if name == "leave": sys.exit(3)
    say(name, {name: "pass", f"{name}-value": 7})
"""
_COMMAND = [sys.executable, "-S", "-c", _CHILD]


def test_results_are_gathered() -> None:
    found = supervise(_COMMAND, ["one", "two"], Limits())
    assert found == {"one": "pass", "one-value": 7, "two": "pass", "two-value": 7}


def test_a_probe_that_hangs_or_kills_costs_itself_only() -> None:
    began = time.monotonic()
    found = supervise(_COMMAND, ["one", "hang", "die", "leave", "two"], Limits(probe=0.5))
    assert found["hang"] == "hung, and had to be killed"
    assert found["die"] == "killed its process: SIGSEGV"
    assert found["leave"] == "ended its process with status 3"
    assert (found["one"], found["two"]) == ("pass", "pass")
    assert time.monotonic() - began < 30


def test_a_child_that_never_speaks_is_given_up() -> None:
    found = supervise([sys.executable, "-c", "import time; time.sleep(60)"], ["a"], Limits(0.2))
    assert found == {"a": "hung, and had to be killed"}


def test_all_of_it_has_an_end() -> None:
    found = supervise(_COMMAND, ["hang", "two"], Limits(probe=0.2, total=0.1))
    assert found == {"hang": "hung, and had to be killed", "two": "not tried: 0.1 s were over"}
