"""The lab itself: requests, lifetimes, refusals, and a KVM in it that debugs rightly."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmdbg.progress import PlainProgress, SilentProgress
from tests.lab.debian import DebCache
from tests.lab.errors import LabError
from tests.lab.l1 import L1
from tests.lab.lab import Lab
from tests.lab.machines import MACHINES
from tests.lab.pins import read_pins
from tests.lab.tree import ROOT

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]  # the first one may build everything

QUIET = SilentProgress()


@pytest.fixture(scope="module", params=MACHINES)
def lab(request: pytest.FixtureRequest) -> Lab:
    """A lab of each architecture."""
    made = Lab(request.param)
    made.ensure(PlainProgress())
    return made


@pytest.fixture(scope="module")
def l1(lab: Lab) -> Iterator[L1]:
    """An L1 with the working tree in it."""
    with lab.start(QUIET) as started:
        assert started.run("true", tree=lab.pack_tree(QUIET)).status == 0
        yield started


def test_output_and_status_come_back(l1: L1) -> None:
    done = l1.run("echo out; echo err >&2; exit 7")
    assert (done.status, done.out, done.err) == (7, "out\n", "err\n")


def test_it_has_the_cpus_that_it_is_to_have(lab: Lab, l1: L1) -> None:
    assert l1.run("nproc").out == f"{lab.cpus}\n"


def test_a_signal_counts_as_in_a_shell(l1: L1) -> None:
    assert l1.run("kill -TERM $$").status == 128 + signal.SIGTERM


def test_a_lot_of_output_arrives_whole(l1: L1) -> None:
    done = l1.run("seq 200000")
    assert done.out == "".join(f"{n}\n" for n in range(1, 200001))


def test_nobody_waits_for_what_a_command_leaves_running(l1: L1) -> None:
    assert l1.run("sleep 1000 & echo started", timeout=60).out == "started\n"


def test_the_tree_is_the_working_tree_and_kvmdbg_is_on_the_path(l1: L1) -> None:
    done = l1.run("sha256sum < Makefile; kvmdbg --version; kvmdbg ls")
    assert done.status == 0, done.err
    digest, version, *listed = done.out.splitlines()
    assert digest.split()[0] == hashlib.sha256((ROOT / "Makefile").read_bytes()).hexdigest()
    assert version.startswith("kvmdbg ")
    assert any(line.split()[:1] == ["demo"] for line in listed)


@pytest.mark.parametrize("lab", ["x86_64"], indirect=True)
def test_the_demo_image_is_at_hand(l1: L1) -> None:
    code = (
        "from kvmdbg.images import *; import sys;"
        "image = ImageStore().find(load_recipe(builtin_dir() / 'demo/recipe.toml'), verify=True);"
        "sys.exit(image is None)"
    )
    done = l1.run(f'python3 -c "{code}"')
    assert done.status == 0, done.err


def test_tests_run_inside_and_their_report_comes_back(l1: L1) -> None:
    done = l1.run("pytest -q --junitxml=report.xml tests/unit/test_native.py", file="report.xml")
    assert done.status == 0, done.out + done.err
    assert done.file is not None
    suite = ElementTree.fromstring(done.file).find("testsuite")
    assert suite is not None
    assert int(suite.attrib["tests"]) > 0
    assert suite.attrib["failures"] == suite.attrib["errors"] == "0"


def test_its_kvm_does_what_the_matrix_says(l1: L1) -> None:
    """The cases of Linux's debug_regs and the rest of tests/kvm, on a real KVM."""
    done = l1.run("pytest -q --junitxml=kvm.xml tests/kvm", file="kvm.xml")
    assert done.status == 0, done.out + done.err
    assert done.file is not None
    suite = ElementTree.fromstring(done.file).find("testsuite")
    assert suite is not None
    ran = int(suite.attrib["tests"]) - int(suite.attrib["skipped"])
    assert ran > 20, done.out


SOAK = "KVMDBG_SOAK" in os.environ
soak = pytest.mark.skipif(not SOAK, reason="an hour: make soak")


MEASURE = {"KVMDBG_EXACT_HITS": "10000", "KVMDBG_KILLS": "100" if SOAK else "10"}
"""How much of them: what is emulated takes longer."""

SKIPPED = {
    "tests/contract -k agent": {
        "the host's KVM has int3": 2,
        "the processor tells of the first debug register only, as QEMU's TCG does": 1,
    }
}
"""What is not for a KVM that is right: how many tests, by their reasons."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("lab", ["x86_64"], indirect=True)
@pytest.mark.parametrize(
    ("tests", "least"),
    [
        ("tests/nested", 4),  # guests that patch and debug themselves
        ("tests/contract -k agent", 115),
        ("tests/contract/test_exact.py", 8),
        ("tests/vm/test_killed.py", 4),  # with int3s
        ("tests/gdb/test_demo.py tests/gdb/test_batch.py", 8),
        pytest.param("tests/agent/test_late.py", 15, marks=soak),
        pytest.param("tests/gdb/test_watchpoints.py tests/gdb/test_halted.py", 16, marks=soak),
        pytest.param("tests/gdb/test_breakpoints.py tests/gdb/test_stepping.py", 20, marks=soak),
        pytest.param(
            "tests/gdb/test_nonstop.py tests/gdb/test_sessions.py -k 'not 18'", 10, marks=soak
        ),
        pytest.param("tests/gdb/test_other_monitors.py tests/vm/test_owner.py", 20, marks=soak),
    ],
)
def test_guests_are_debugged_under_its_kvm(l1: L1, tests: str, least: int) -> None:
    options = "--kvmdbg-accel kvm --kvmdbg-timeout-scale 3"
    done = l1.run(
        f"pytest -q --junitxml=guests.xml {tests} {options}",
        file="guests.xml",
        environment=MEASURE,
        timeout=1800 if SOAK else 300,  # a test says nothing until it is over
    )
    assert done.status == 0, done.out + done.err
    assert done.file is not None
    suite = ElementTree.fromstring(done.file).find("testsuite")
    assert suite is not None
    skipped = Counter(skip.attrib["message"] for skip in suite.iter("skipped"))
    assert skipped == SKIPPED.get(tests, {}), done.out
    assert int(suite.attrib["tests"]) - skipped.total() >= least, done.out


@soak
@pytest.mark.timeout(3600)
def test_no_hit_in_a_hundred_thousand_is_lost_or_counted_twice() -> None:
    lab = Lab()
    with lab.start(QUIET) as l1:
        done = l1.run(
            "pytest -q tests/contract/test_exact.py --kvmdbg-accel kvm --kvmdbg-timeout-scale 3",
            tree=lab.pack_tree(QUIET),
            environment={"KVMDBG_EXACT_HITS": "100000"},
            timeout=2400,
        )
    assert done.status == 0, done.out + done.err
    assert "8 passed" in done.out, done.out


def test_doctor_shows_the_whole_matrix(l1: L1) -> None:
    done = l1.run("kvmdbg doctor --json")
    assert done.status in (0, 1), done.out + done.err
    report = json.loads(done.out)
    assert report["kvm"], "KVM in the lab is good enough to debug with"


def test_a_file_that_is_not_there_does_not_come_back(l1: L1) -> None:
    assert l1.run("true", file="nothing").file is None


def test_l1s_share_an_image_and_nothing_else(lab: Lab) -> None:
    with lab.start(QUIET) as one, lab.start(QUIET) as other:
        assert one.run("echo mine > /usr/share/mark").status == 0
        assert other.run("cat /usr/share/mark").status != 0
        assert one.run("cat /usr/share/mark").out == "mine\n"


def test_an_l1_that_dies_is_one_sentence(lab: Lab) -> None:
    with lab.start(QUIET) as doomed, pytest.raises(LabError, match="L1 has ended"):
        doomed.run("echo c > /proc/sysrq-trigger; sleep 60")


def test_an_l1_that_is_silent_is_one_sentence_and_no_more(lab: Lab) -> None:
    with lab.start(QUIET) as silent:
        with pytest.raises(LabError, match=r"L1 was silent for 0\.5 s, and was ended"):
            silent.run("sleep 60; echo late", timeout=0.5)
        with pytest.raises(LabError, match="L1 has ended"):
            silent.run("true")


def test_an_l1_ends_with_a_starter_that_is_killed(lab: Lab) -> None:
    starter = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.lab",
            "--arch",
            lab.machine.arch,
            "run",
            "echo up; sleep 1000",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    with starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()
        assert len(children) == 1
        qemu = os.pidfd_open(int(children[0]))
        starter.kill()
    try:
        assert select.select([qemu], [], [], 30)[0], "the outer QEMU outlived its starter"
    finally:
        os.close(qemu)


def test_a_shell_has_the_terminal(lab: Lab) -> None:
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (33, 101))
    shell = subprocess.Popen(
        [sys.executable, "-m", "tests.lab", "--arch", lab.machine.arch, "shell"],
        cwd=ROOT,
        stdin=its,
        stdout=its,
        start_new_session=True,
    )
    os.close(its)
    said = bytearray()
    with shell, contextlib.suppress(OSError):  # EIO: it has ended
        while b"lab:/work# " not in said:
            said += os.read(ours, 4096)
        os.write(ours, b"stty size; exit 3\r")
        while True:
            said += os.read(ours, 4096)
    os.close(ours)
    assert b"33 101" in said
    assert shell.returncode == 3


def test_an_l2_under_kvm_stops_where_gdb_wants(lab: Lab, l1: L1) -> None:
    """Its int3 reaches KVM only in an outer QEMU with the fix, a debug register only in 10."""
    done = l1.run(" ".join(["tests/lab/inside/l2.sh", lab.machine.console, *lab.machine.l2]))
    assert done.status == 0, done.out + done.err
    for line in (
        ": ready",
        "hardware: stopped at 1",
        "step: moved 1",
        "software: stopped at 1",
        "again: stopped at 1",
        "Hardware access (read/write) watchpoint 3: -location *(unsigned long *)($sp - 32)\n\n",
    ):
        assert line in done.out, done.out + done.err


def test_a_version_that_the_mirror_has_no_more_is_refused(tmp_path: Path) -> None:
    pin = read_pins("x86_64").debs[0]
    gone = dataclasses.replace(pin, version="0~gone")
    with pytest.raises(LabError, match=rf"no longer has {pin.name}.* 0~gone.*make lab-update"):
        DebCache(tmp_path).ensure([gone], "x86_64", QUIET)


def test_a_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    pin = min(read_pins("x86_64").debs, key=lambda package: package.size)
    other = dataclasses.replace(pin, sha256="0" * 64)
    with pytest.raises(LabError, match="is not the file that the lab pins"):
        DebCache(tmp_path).ensure([other], "x86_64", QUIET)


def test_a_machine_without_debian_sources_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apt.conf").write_text(
        'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    with pytest.raises(LabError, match="no source of Debian's own packages"):
        DebCache(tmp_path).ensure(read_pins("x86_64").debs[:1], "x86_64", QUIET)
