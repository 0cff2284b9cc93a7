"""The runtime folder: private, swept, locked."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kvmdbg.errors import RuntimeDirError
from kvmdbg.machine.processes import ProcessId
from kvmdbg.machine.runtime import FileLock, RuntimeDir, VmInfo, default_path, make_private

GONE = ProcessId(2**22 - 1, 1)


def me() -> ProcessId:
    process = ProcessId.of(os.getpid())
    assert process is not None
    return process


def info(process: ProcessId, name: str = "demo") -> VmInfo:
    return VmInfo(
        name=name,
        process=process,
        arch="x86_64",
        accel="tcg",
        accel_reason="",
        engine="stub",
        cpus=1,
        booted=True,
        on_kill="quit",
    )


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeDir]:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for unix sockets
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield RuntimeDir.open()


def test_the_folder_is_ours_alone(runtime: RuntimeDir) -> None:
    assert runtime.path == Path(os.environ["XDG_RUNTIME_DIR"], "kvmdbg")
    for path in (runtime.path, runtime.new_vm("demo").path, runtime.owner(me()).path):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_folder_open_to_others_is_refused(runtime: RuntimeDir) -> None:
    runtime.path.chmod(0o755)
    with pytest.raises(RuntimeDirError, match="mode 0755"):
        RuntimeDir.open()


def test_a_planted_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(RuntimeDirError, match="not a folder of our own but a link"):
        make_private(tmp_path / "link")


def test_another_users_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(RuntimeDirError, match="belongs to uid"):
        make_private(tmp_path)


def test_too_long_a_path_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 80)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(RuntimeDirError, match="too long a path for unix sockets"):
        RuntimeDir.open()


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nope"))
    with pytest.raises(RuntimeDirError, match="which is no folder"):
        default_path()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    path = default_path()
    assert path.parent.is_dir()
    assert str(os.getuid()) in str(path)


def test_vm_json_survives_and_only_live_vms_are_listed(runtime: RuntimeDir) -> None:
    live, dead = runtime.new_vm("a-name-much-longer-than-what-fits"), runtime.new_vm("dead")
    live.write(info(me(), "live"))
    dead.write(info(GONE))
    assert [found.name for _, found in runtime.vms()] == ["live"]
    assert live.read() == info(me(), "live")
    found = runtime.vm_of(me())
    assert found is not None
    assert found[0].path == live.path
    assert runtime.vm_of(GONE) is None
    assert len(os.fsencode(live.console.name)) + len(live.path.name) < 40


def test_a_damaged_vm_json_is_no_vm(runtime: RuntimeDir) -> None:
    folder = runtime.new_vm("demo")
    folder.info.write_text('{"name": 3}')
    assert folder.read() is None
    assert list(runtime.vms()) == []


def test_sweep_removes_what_is_gone_and_nothing_else(runtime: RuntimeDir) -> None:
    live, dead, fresh, old = (runtime.new_vm(name) for name in ("live", "dead", "fresh", "old"))
    live.write(info(me()))
    dead.write(info(GONE))
    os.utime(old.path, (0, 0))
    kept, stale, held = runtime.owner(me()), runtime.owner(GONE), runtime.owner(ProcessId(3, 0))
    lock = FileLock(held.lock)
    assert lock.acquire()
    names = [runtime.name_lock(name) for name in ("used", "unused", "used for long")]
    for name in names:
        assert name.acquire()
    for name in names[:2]:
        name.release()
    for path in (runtime.path / "names").iterdir():
        if path.name != "used.lock":
            os.utime(path, (0, 0))
    runtime.sweep()
    assert {path.name for path in (runtime.path / "names").iterdir()} == {
        "used.lock",
        "used%20for%20long.lock",
    }
    names[2].release()
    assert [folder.path.exists() for folder in (live, dead, fresh, old)] == [
        True,
        False,
        True,
        False,
    ]
    assert [owner.path.exists() for owner in (kept, stale, held)] == [True, False, True]
    lock.release()


def test_a_lock_has_one_holder(runtime: RuntimeDir) -> None:
    first, second = runtime.name_lock("a/b"), runtime.name_lock("a/b")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    assert second.held
    second.release()


def test_facts_of_a_newer_kvmdbg_are_ignored(runtime: RuntimeDir) -> None:
    folder = runtime.new_vm("demo")
    raw = msgspec.json.decode(msgspec.json.encode(info(me())))
    folder.info.write_bytes(msgspec.json.encode(raw | {"new": 1}))
    assert folder.read() == info(me())


def test_looking_for_an_owner_makes_nothing(runtime: RuntimeDir) -> None:
    process = ProcessId(os.getpid(), 1)
    assert not runtime.is_owned(process)
    assert not list((runtime.path / "owners").iterdir())
    lock = FileLock(runtime.owner(process).lock)
    assert lock.acquire()
    assert runtime.is_owned(process)
    lock.release()
    assert not runtime.is_owned(process)
