"""What the host is: KVM's device and kind, QEMU, who may look into processes, our agent."""

from __future__ import annotations

import ctypes
import grp
import os
import platform
import pwd
import shutil
import stat
import subprocess
from importlib import resources
from pathlib import Path

import msgspec

from kvmdbg.errors import KvmUnavailable, LaunchError
from kvmdbg.kvm.local import KVM_DEVICE, LocalKvm
from kvmdbg.machine.qemu import MINIMUM_VERSION, parse_version

_PROC, _SYS = Path("/proc"), Path("/sys")
_CAP_SYS_PTRACE = 19
_QEMU_TIMEOUT = 10.0

FLAVOURS = {"pvm": "PVM", "svm": "AMD SVM", "vmx": "Intel VMX", "arm64": "arm64"}
_MODULES = {"kvm_pvm": "pvm", "kvm_amd": "svm", "kvm_intel": "vmx"}


class Device(msgspec.Struct, frozen=True):
    """/dev/kvm; ``trouble`` says why it cannot be opened."""

    path: str
    permissions: str | None
    group: str | None
    trouble: str | None


class Qemu(msgspec.Struct, frozen=True):
    """The QEMU on the PATH; ``trouble`` says why it cannot be used."""

    program: str
    version: str | None
    trouble: str | None


class HostFacts(msgspec.Struct, frozen=True):
    """What files and programs say, without running any guest."""

    kernel: str
    device: Device
    flavour: str | None
    """A key of FLAVOURS; None where there is no KVM, or one we do not know."""
    virtualization: str | None
    """The processor's own: ``vmx`` or ``svm``."""
    is_guest: bool
    """Whether the host is a virtual machine itself."""
    qemu: Qemu
    ptrace_scope: int | None
    """Yama's setting; None without Yama."""
    may_ptrace: bool
    """CAP_SYS_PTRACE."""
    security_modules: str | None
    agent_abi: int | None
    agent_trouble: str | None


def collect() -> HostFacts:
    """Ask the host; some tens of milliseconds, most of them QEMU's."""
    flags = _cpu_flags()
    agent_abi, agent_trouble = _load_agent()
    return HostFacts(
        kernel=platform.release(),
        device=device_facts(KVM_DEVICE),
        flavour=_flavour(),
        virtualization=next((flag for flag in ("vmx", "svm") if flag in flags), None),
        is_guest="hypervisor" in flags,
        qemu=_qemu(f"qemu-system-{platform.machine()}"),
        ptrace_scope=_read_int(_PROC / "sys/kernel/yama/ptrace_scope"),
        may_ptrace=_has_capability(_CAP_SYS_PTRACE),
        security_modules=_read(_SYS / "kernel/security/lsm"),
        agent_abi=agent_abi,
        agent_trouble=agent_trouble,
    )


def device_facts(path: str) -> Device:
    """Permissions and owner of the node, and whether we can open it."""
    try:
        node = os.stat(path)
    except FileNotFoundError:
        return Device(path, None, None, f"there is no {path}")
    try:
        LocalKvm(path).close()
        trouble = None
    except KvmUnavailable as error:
        trouble = str(error)
    owner, group = _user_name(node.st_uid), _group_name(node.st_gid)
    return Device(path, f"{stat.filemode(node.st_mode)} {owner}:{group}", group, trouble)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _flavour() -> str | None:
    if platform.machine() == "aarch64":
        return "arm64"
    loaded = (kind for module, kind in _MODULES.items() if (_SYS / "module" / module).is_dir())
    return next(loaded, None)


def _cpu_flags() -> set[str]:
    for line in (_read(_PROC / "cpuinfo") or "").splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _has_capability(number: int) -> bool:
    for line in (_read(_PROC / "self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _qemu(name: str) -> Qemu:
    program = shutil.which(name)
    if program is None:
        return Qemu(name, None, f"{name} is not on the PATH")
    try:
        answer = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_QEMU_TIMEOUT,
            check=False,
        )
        version = parse_version(program, answer.stdout.decode(errors="replace"))
    except OSError as error:
        return Qemu(program, None, f"cannot run {program}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Qemu(program, None, f"{program} --version did not answer")
    except LaunchError as error:
        return Qemu(program, None, str(error))
    text = ".".join(map(str, version))
    old = version < MINIMUM_VERSION
    return Qemu(program, text, f"{program} is QEMU {text}, which is too old" if old else None)


def _load_agent() -> tuple[int | None, str | None]:
    """Load agent.so here, as QEMU would have to."""
    with resources.as_file(resources.files("kvmdbg.agent") / "agent.so") as path:
        try:
            agent = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
            return ctypes.c_uint.in_dll(agent, "kvmdbg_agent_abi").value, None
        except (OSError, ValueError) as error:
            return None, str(error)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _read_int(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.isdecimal() else None
