"""The local transport: ioctls on a real KVM, and its failures."""

import errno
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvmdbg.errors import IoctlError, KvmUnavailable, MemoryFault
from kvmdbg.kvm.exits import Interrupted, Io
from kvmdbg.kvm.local import LocalKvm, LocalVm
from kvmdbg.kvm.system import API_VERSION, check_extension, get_api_version
from kvmdbg.kvm.transport import Transport
from kvmdbg.kvm.x86 import registers
from kvmdbg.kvm.x86.cases import KERNEL, USER
from kvmdbg.kvm.x86.guest import DATA, DONE_PORT, MEMORY, load
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


def test_registers_survive_a_round_trip(vm: Transport) -> None:
    regs = registers.Regs(rax=1 << 63, r15=0x1234, rip=0x1000, rflags=2)
    vm.call(registers.set_regs(regs))
    assert vm.call(registers.get_regs()) == regs
    load(vm, USER, "loop")
    assert vm.call(registers.get_sregs()).cs.dpl == 3


def test_debug_registers_and_events_survive_a_round_trip(vm: Transport) -> None:
    debugregs = vm.call(registers.get_debugregs())
    changed = replace(debugregs, db=(1, 2, 3, 4))
    vm.call(registers.set_debugregs(changed))
    assert vm.call(registers.get_debugregs()) == changed
    events = vm.call(registers.get_vcpu_events())
    vm.call(registers.set_vcpu_events(events))
    assert vm.call(registers.get_vcpu_events()) == events
    xsave = vm.call(registers.get_xsave())
    vm.call(registers.set_xsave(xsave))
    assert vm.call(registers.get_xsave()) == xsave
    state = vm.call(registers.get_mp_state())
    vm.call(registers.set_mp_state(state))
    assert vm.call(registers.get_mp_state()) == state


def test_msrs_stop_at_the_first_that_kvm_refuses(vm: Transport) -> None:
    lstar, unknown = 0xC000_0082, 0xDEAD_0000
    taken = vm.call(registers.set_msrs({lstar: 0x1000, unknown: 1, 0xC000_0083: 2}))
    assert taken == 1
    assert vm.call(registers.get_msrs([lstar])) == {lstar: 0x1000}


def test_translation_follows_the_guests_page_tables(vm: Transport) -> None:
    load(vm, KERNEL, "loop")
    translation = vm.call(registers.translate(DATA))
    assert (translation.valid, translation.physical_address) == (1, DATA)
    assert vm.call(registers.translate(1 << 40)).valid == 0


def test_the_guest_writes_into_memory_that_we_read(vm: Transport) -> None:
    load(vm, KERNEL, "write")
    exit = vm.run()
    assert isinstance(exit, Io)
    assert exit.port == DONE_PORT
    assert vm.read(DATA, 4) == (1234).to_bytes(4, "little")


def test_memory_ends_somewhere(vm: Transport) -> None:
    vm.write(MEMORY - 1, b"x")
    with pytest.raises(MemoryFault, match="GPA 0xfffff, 2 bytes"):
        vm.read(MEMORY - 1, 2)
    with pytest.raises(MemoryFault):
        vm.write(-1, b"x")


def test_a_vcpu_can_be_told_to_come_back(vm: LocalVm) -> None:
    load(vm, KERNEL, "loop")
    vm.finish()
    before = vm.call(registers.get_regs())
    vm.finish()
    assert vm.call(registers.get_regs()) == before  # not one instruction was run


def test_a_guest_that_runs_on_is_interrupted_by_a_signal(vm: Transport) -> None:
    load(vm, KERNEL, "loop", rcx=2**32 - 1)
    with coming_back(0.05):
        assert vm.run() == Interrupted()
    assert vm.call(registers.get_regs()).rcx > 0


def test_another_process_is_refused(vm: Transport) -> None:
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
