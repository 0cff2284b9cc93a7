"""The local transport: ioctls on a real KVM, and its failures."""

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from kvmdbg.errors import IoctlError, KvmUnavailable, MemoryFault
from kvmdbg.kvm.exits import Interrupted
from kvmdbg.kvm.local import LocalKvm, LocalVm
from kvmdbg.kvm.system import API_VERSION, check_extension, get_api_version
from kvmdbg.kvm.x86 import registers
from kvmdbg.kvm.x86.cases import KERNEL
from kvmdbg.kvm.x86.guest import MEMORY, load
from tests.kvm.conftest import coming_back

if platform.machine() != "x86_64":
    pytest.skip("the registers are those of x86", allow_module_level=True)

_OTHER_PROCESS = """
import sys
from kvmdbg.errors import IoctlError
from kvmdbg.kvm.local import execute
from kvmdbg.kvm.x86.registers import get_regs
try:
    execute(int(sys.argv[1]), get_regs())
except IoctlError as error:
    print(error.errno, error)
"""


def test_the_api_is_the_one_we_know(kvm: LocalKvm) -> None:
    assert kvm.call(get_api_version()) == API_VERSION
    assert kvm.call(check_extension("KVM_CAP_IMMEDIATE_EXIT")) == 1


def test_memory_ends_somewhere(local_vm: LocalVm) -> None:
    local_vm.write(MEMORY - 1, b"x")
    with pytest.raises(MemoryFault, match="GPA 0xfffff, 2 bytes"):
        local_vm.read(MEMORY - 1, 2)
    with pytest.raises(MemoryFault):
        local_vm.write(-1, b"x")


def test_a_vcpu_can_be_told_to_come_back(local_vm: LocalVm) -> None:
    load(local_vm, KERNEL, "loop")
    local_vm.finish()
    before = local_vm.call(registers.get_regs())
    local_vm.finish()
    assert local_vm.call(registers.get_regs()) == before  # not one instruction was run


def test_a_guest_that_runs_on_is_interrupted_by_a_signal(local_vm: LocalVm) -> None:
    load(local_vm, KERNEL, "loop", rcx=2**32 - 1)
    with coming_back(0.05):
        assert local_vm.run() == Interrupted()
    assert local_vm.call(registers.get_regs()).rcx > 0


def test_another_process_is_refused(local_vm: LocalVm) -> None:
    # Those that are open still: the folder was one of them, to be listed.
    links = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    vcpu, *_ = [int(fd.name) for fd in links if os.readlink(fd) == "anon_inode:kvm-vcpu:0"]
    told = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, str(vcpu)],
        pass_fds=[vcpu],
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout == f"{errno.EIO} KVM_GET_REGS on vCPU 0 failed: Input/output error (EIO)\n"


def test_a_device_that_is_not_there_is_one_sentence(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(KvmUnavailable, match=r"cannot open .*/kvm: No such file or directory"):
        LocalKvm(os.fspath(tmp_path) + "/kvm")


def test_a_device_that_is_no_kvm_is_refused_by_name() -> None:
    with LocalKvm("/dev/null") as nothing, pytest.raises(IoctlError, match="KVM_GET_API_VERSION"):
        nothing.call(get_api_version())
