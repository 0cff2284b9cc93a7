"""Single cases of the agent under a fake KVM: see ``cases.c``."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.agent.building import FAKE, compile_with_fake

CASES = re.findall(r'^    \{"([a-z-]+)", ', (FAKE / "cases.c").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("cases") / "cases"
    compile_with_fake(program, "cases.c", "address,undefined")
    return program


@pytest.mark.parametrize("case", CASES)
def test_case(cases: Path, case: str) -> None:
    done = subprocess.run([cases, case], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
