"""QEMU Machine Protocol: a thin adapter over qemu.qmp that adds timeouts and plain errors."""

from kvmdbg.qmp.connection import QmpConnection, QmpEvent

__all__ = ["QmpConnection", "QmpEvent"]
