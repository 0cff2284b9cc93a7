"""Compiles the agent's C with what a test puts around it."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "kvmdbg" / "agent" / "native"
FAKE = Path(__file__).parent
ON_OTHER_MACHINES = {"arm64.c"}
INTO_QEMU = {"entry.c"}
"""What the fake KVM and QEMU stand in for."""

_FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-g"]


def compile_with_fake(program: Path, main: str, sanitizers: str, agent: Path = AGENT) -> None:
    """Compile the agent in folder ``agent`` with the fake KVM and one of the programs here."""
    sources = [
        *(p for p in agent.glob("*.c") if p.name not in ON_OTHER_MACHINES | INTO_QEMU),
        FAKE / "fake.c",
        FAKE / main,
    ]
    _compile(program, sources, [f"-fsanitize={sanitizers}", f"-I{agent}"])


def compile_library(library: Path, source: str) -> None:
    """Compile one of the agent's files, which needs no others, into a shared library."""
    _compile(library, [AGENT / source], ["-shared", "-fPIC"])


def _compile(output: Path, sources: Iterable[Path], flags: list[str]) -> None:
    include = f"-I{ROOT / 'cdefs'}"
    subprocess.run(
        ["gcc", *_FLAGS, *flags, include, *map(str, sources), "-o", output, "-pthread"], check=True
    )
