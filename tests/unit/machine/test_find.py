"""From a name to a VM or a definition."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from kvmdbg.errors import VmAmbiguous, VmNotFound
from kvmdbg.machine import find
from kvmdbg.machine.find import DefinedVm, RunningVm, list_definitions, look_up
from kvmdbg.machine.processes import ProcessId
from kvmdbg.machine.runtime import RuntimeDir, VmInfo


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeDir]:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for unix sockets
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield RuntimeDir.open()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory where nothing is defined, and no VM runs."""
    monkeypatch.setattr(find, "list_vms", lambda _: [])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "checkout" / "src"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def define(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('memory = "64M"\nextra_args = []\n')
    return path


def running(name: str, pid: int) -> RunningVm:
    return RunningVm(name, ProcessId(pid, 1), 0, "x86_64", "tcg")


def test_the_packages_own_definition_is_the_last_resort(runtime: RuntimeDir, here: Path) -> None:
    found = look_up(runtime, "demo")
    assert isinstance(found, DefinedVm)
    assert found.path.parts[-3:] == ("vm-images", "demo", "vm.toml")


def test_definitions_hide_each_other_in_order(runtime: RuntimeDir, here: Path) -> None:
    places = [
        here.parents[1] / "config" / "kvmdbg" / "demo" / "vm.toml",
        here.parents[1] / "config" / "kvmdbg" / "demo.toml",
        here.parent / "vm-images" / "demo" / "vm.toml",
        here / "demo.toml",
    ]
    for place in places:
        define(place)
        found = look_up(runtime, "demo")
        assert found == DefinedVm("demo", place)
    assert [d for d in list_definitions() if d.name == "demo"] == [DefinedVm("demo", places[-1])]


def test_other_toml_files_are_no_definitions(here: Path) -> None:
    (here / "pyproject.toml").write_text('[project]\nname = "x"\n')
    (here / "notext.toml").write_bytes(b"\xff\xfe")
    names = [d.name for d in list_definitions()]
    assert "pyproject" not in names
    assert "notext" in names  # kvmdbg ls says what is wrong with it


def test_a_path_is_a_definition(runtime: RuntimeDir, here: Path) -> None:
    define(here / "sub" / "vm.toml")
    assert look_up(runtime, "sub/vm.toml") == DefinedVm("sub", here / "sub" / "vm.toml")
    with pytest.raises(VmNotFound, match=r"no VM definition .*/nope.toml"):
        look_up(runtime, "./nope.toml")


def test_a_running_vm_comes_first(
    runtime: RuntimeDir, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = msgspec.structs.replace(running("demo-2", 11), info=cast(VmInfo, object()))
    vms = [running("demo", 10), ours, running("foreign", 12)]
    monkeypatch.setattr(find, "list_vms", lambda _: vms)
    assert look_up(runtime, "demo") == vms[0]
    assert look_up(runtime, "demo", "demo-2") == vms[1]
    assert isinstance(look_up(runtime, "demo", "demo-3"), DefinedVm)
    with pytest.raises(VmNotFound, match="foreign is a QEMU that kvmdbg did not boot"):
        look_up(runtime, "demo", "foreign")
    with pytest.raises(VmNotFound, match=r"foreign is a VM that runs, .* leave it out"):
        look_up(runtime, "foreign", "other")


def test_a_pid_has_no_other_name(
    runtime: RuntimeDir, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "running_vm", lambda _, pid: running("a", pid))
    assert look_up(runtime, "pid:10") == running("a", 10)
    with pytest.raises(VmNotFound, match=r"pid:10 is a VM that runs, .* leave it out"):
        look_up(runtime, "pid:10", "other")


def test_an_ambiguous_name_lists_the_pids(
    runtime: RuntimeDir, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "list_vms", lambda _: [running("a", 10), running("a", 11)])
    with pytest.raises(VmAmbiguous, match="2 running VMs are named a: say pid:10 or pid:11"):
        look_up(runtime, "a")


def test_an_unknown_name_lists_candidates_closest_first(
    runtime: RuntimeDir, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "list_vms", lambda _: [running("other", 10), running("demi", 11)])
    with pytest.raises(
        VmNotFound,
        match="no VM and no definition named dem: there are demo, demi, other",
    ):
        look_up(runtime, "dem")
    with pytest.raises(VmNotFound, match="no QEMU runs with process id 4194303"):
        look_up(runtime, "pid:4194303")
