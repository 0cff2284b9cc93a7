"""A transport to try KVM on, and what is expected of the KVM that is here.

The outcomes that a kind of KVM is known for are in ``matrices/KIND.toml``: pvm; or lab-x86_64 and
lab-aarch64, where ``KVMDBG_LAB`` says that we are in the lab. Where there is no such file, every
case must pass.
"""

import os
import platform
import signal
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmdbg.kvm.local import KVM_DEVICE, LocalKvm, LocalVm
from kvmdbg.kvm.probes import SUITE
from kvmdbg.kvm.suite import PASS
from kvmdbg.kvm.transport import Transport
from kvmdbg.machine.hostfacts import collect, device_facts
from tests.kvm.agent_vm import agent_vm

MATRICES = Path(__file__).parent / "matrices"
GUEST_LIMIT = 5.0  # seconds


@pytest.fixture(scope="session")
def kvm() -> Iterator[LocalKvm]:
    """/dev/kvm. Where it cannot be opened nothing here can run, and the report says why."""
    trouble = device_facts(KVM_DEVICE).trouble
    if trouble is not None:
        pytest.skip(trouble)
    with LocalKvm() as kvm:
        yield kvm


@pytest.fixture
def local_vm(kvm: LocalKvm) -> Iterator[LocalVm]:
    """A fresh VM of our own process."""
    with SUITE.create_vm(kvm) as vm, coming_back():
        yield vm


@pytest.fixture(params=["local", "agent"])
def vm(request: pytest.FixtureRequest, kvm: LocalKvm, tmp_path: Path) -> Iterator[Transport]:
    """A fresh VM on each transport that there is."""
    if request.param == "local":
        yield request.getfixturevalue("local_vm")
    else:
        with agent_vm(tmp_path, GUEST_LIMIT) as vm:
            yield vm


@contextmanager
def coming_back(limit: float = GUEST_LIMIT) -> Iterator[None]:
    """Guests that run on are interrupted, again and again, until the block ends."""
    thread = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    over = threading.Event()

    def interrupt() -> None:
        while not over.wait(limit):
            signal.pthread_kill(thread, signal.SIGUSR1)

    watchdog = threading.Thread(target=interrupt)
    watchdog.start()
    try:
        yield
    finally:
        over.set()
        watchdog.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture(scope="session")
def matrix() -> dict[str, str]:
    """Case → the outcome that this kind of KVM is known for."""
    in_lab = os.environ.get("KVMDBG_LAB") == "l1"
    name = f"lab-{platform.machine()}" if in_lab else collect().flavour
    path = MATRICES / f"{name}.toml"
    known = tomllib.loads(path.read_text()) if path.exists() else {}
    return dict.fromkeys((case.name for case in SUITE.cases), PASS) | known
