"""The import arrows of ARCHITECTURE.md: who may import whom inside kvmdbg.

An import under TYPE_CHECKING or inside a function counts like any other.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kvmdbg"

OPEN_TO_ALL = {"addr", "cstruct", "errors", "progress", "_native"}

_TARGET_SIDE = {"target", "agent", "arch", "rsp", "ax"}
_BELOW_TOP = _TARGET_SIDE | {
    "backend",
    "images",
    "kvm",
    "linux",
    "machine",
    "owner",
    "qmp",
    "server",
    "wire",
}

# Package or module -> what it may import, beside itself and OPEN_TO_ALL.
ARROWS: dict[str, set[str]] = {
    "addr": set(),
    "cstruct": set(),
    "errors": set(),
    "progress": set(),
    "rsp": set(),
    "wire": set(),
    "ax": set(),
    "arch": set(),
    "kvm": set(),
    "qmp": set(),
    "images": set(),
    "target": {"arch"},
    "agent": {"wire", "kvm"},
    "backend": _TARGET_SIDE | {"wire", "kvm"},
    "machine": {"backend", "target", "agent", "arch", "qmp", "kvm", "images"},
    "linux": {"target", "arch"},
    "server": {"rsp", "target", "ax"},
    "owner": {"machine", "server", "linux", "target"},
    "api": _BELOW_TOP - {"images"},
    "report": _BELOW_TOP - {"images"},
    "pytest_plugin": (_BELOW_TOP | {"api", "report", "kvmdbg"}) - {"images"},
    "cli": _BELOW_TOP | {"api", "report", "kvmdbg"},
    "kvmdbg": {"api"},  # __init__.py, the public face
}
IMPORT_NOTHING = {"addr", "cstruct", "errors", "progress"}

SANS_IO = {"rsp", "wire", "ax", "arch", "kvm"}
IO_MODULES = {
    "asyncio",
    "fcntl",
    "mmap",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
}
# The one module of a sans-IO package that does I/O, and with what.
DOES_IO = {"kvm/local.py": {"fcntl", "mmap"}}


def modules(package: Path) -> Iterator[tuple[str, list[str], Path]]:
    """Every module below `package`: the unit it belongs to, its dotted package, its path."""
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).parts]
        unit = parts[1] if len(parts) > 2 else path.stem
        yield package.name if unit == "__init__" else unit, parts[:-1], path


def imported_names(path: Path, inside: list[str]) -> Iterator[tuple[int, str]]:
    """The line and dotted name of each import; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def unit_of(name: str, package: Path) -> str | None:
    """The unit of `package` that `name` imports from; None for other distributions."""
    top, _, rest = name.partition(".")
    if top != package.name:
        return None
    unit = rest.partition(".")[0]
    if unit in ARROWS or unit in OPEN_TO_ALL or (package / unit).is_dir():
        return unit or package.name
    return None if unit == "__version__" else package.name


def violations(package: Path) -> list[str]:
    """One line for each import that the rules forbid, each unknown unit and each cycle."""
    found = []
    edges: dict[str, set[str]] = {}
    for unit, inside, path in modules(package):
        where = path.relative_to(package.parent)
        if unit not in ARROWS:
            found.append(f"{where}: {unit} has no row in ARROWS")
            continue
        if path.name == "utils.py":
            found.append(f"{where}: name a module after the idea it holds")
        for line, name in imported_names(path, inside):
            other = unit_of(name, package)
            if other is None:
                forbidden = IO_MODULES - DOES_IO.get(str(path.relative_to(package)), set())
                if unit in SANS_IO and name.partition(".")[0] in forbidden:
                    found.append(f"{where}:{line}: {unit} does no I/O, but imports {name}")
                continue
            if other != unit:
                edges.setdefault(unit, set()).add(other)
            allowed = ARROWS[unit] | (set() if unit in IMPORT_NOTHING else OPEN_TO_ALL)
            if other not in allowed | {unit}:
                found.append(f"{where}:{line}: {unit} must not import {other} ({name})")
    return found + cycles(edges)


def cycles(edges: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return ["import cycle: " + " <- ".join(error.args[1])]
    return []


def test_kvmdbg_keeps_to_the_arrows() -> None:
    assert violations(PACKAGE) == []


def test_the_arrows_themselves_have_no_cycle() -> None:
    assert cycles(ARROWS) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("server/a.py", "from kvmdbg.backend import stub", "server must not import backend"),
        ("server/a.py", "import kvmdbg.linux.tasks", "server must not import linux"),
        ("server/a.py", "from kvmdbg import machine", "server must not import machine"),
        ("server/a/b.py", "from ...machine import x", "server must not import machine"),
        ("server/a.py", "from .. import machine", "server must not import machine"),
        ("server/a.py", "def f():\n    import kvmdbg.machine", "a.py:2: server must not"),
        (
            "arch/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from kvmdbg.target import x",
            "arch must not import target",
        ),
        ("errors.py", "from kvmdbg.addr import Gva", "errors must not import addr"),
        ("owner/a.py", "import kvmdbg", "owner must not import kvmdbg"),
        ("machine/a.py", "from kvmdbg import open", "machine must not import kvmdbg"),
        ("rsp/a.py", "import asyncio", "rsp does no I/O"),
        ("kvm/a.py", "import mmap", "kvm does no I/O"),
        ("kvm/local.py", "import socket", "kvm does no I/O"),
        ("wire/a/b.py", "from asyncio.streams import StreamReader", "wire does no I/O"),
        ("rsp/utils.py", "", "name a module after the idea"),
        ("helpers/a.py", "", "helpers has no row"),
        ("helpers.py", "", "helpers has no row"),
    ],
)
def test_a_forbidden_import_is_found(
    tmp_path: Path, module: str, source: str, complaint: str
) -> None:
    package = tree(tmp_path, {module: source})
    (found,) = violations(package)
    assert complaint in found


def test_what_the_arrows_allow_passes(tmp_path: Path) -> None:
    sources = {
        "__init__.py": "def open(): from kvmdbg.api import Vm",
        "api.py": "from kvmdbg.owner import x",
        "cli/main.py": "from kvmdbg import __version__, open\nimport asyncio, kvmdbg.errors",
        "rsp/server/a.py": "from ..frame import x\nfrom kvmdbg._native import lib\nimport enum",
        "kvm/local.py": "import fcntl, mmap",
        "server/a.py": "import asyncio\nfrom kvmdbg.target import x\nfrom . import b",
    }
    assert violations(tree(tmp_path, sources)) == []


def test_a_cycle_is_found(tmp_path: Path) -> None:
    package = tree(
        tmp_path, {"target/a.py": "import kvmdbg.arch", "arch/a.py": "import kvmdbg.target"}
    )
    assert any("import cycle" in line for line in violations(package))


def tree(root: Path, sources: dict[str, str]) -> Path:
    """A package named kvmdbg with every unit of ARROWS (empty) and `sources`."""
    package = root / "kvmdbg"
    for unit in ARROWS.keys() - {"kvmdbg"}:
        (package / unit).mkdir(parents=True)
    (package / "_native.pyi").touch()
    for module in ("addr", "api", "errors"):
        (package / module).rmdir()
        (package / f"{module}.py").touch()
    for name, source in sources.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return package
