"""Every transport: registers, memory and runs of a real KVM."""

import platform
from dataclasses import replace

import pytest

from kvmdbg.kvm.exits import Io
from kvmdbg.kvm.transport import Transport
from kvmdbg.kvm.x86 import registers
from kvmdbg.kvm.x86.cases import KERNEL, USER
from kvmdbg.kvm.x86.guest import DATA, DONE_PORT, load

if platform.machine() != "x86_64":
    pytest.skip("the registers are those of x86", allow_module_level=True)


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
