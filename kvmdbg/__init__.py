"""kvmdbg: a debugger for Linux kernels in virtual machines.

:func:`kvmdbg.open` is the way in; see :mod:`kvmdbg.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["Breakpoint", "Vm", "__version__", "open"]

if TYPE_CHECKING:
    from kvmdbg.api import Breakpoint, Vm, open


def __getattr__(name: str) -> Any:
    # The API is imported when it is used: the command line starts without it.
    if name in __all__:
        from kvmdbg import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
