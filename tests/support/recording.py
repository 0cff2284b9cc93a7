"""Sessions with real clients, recorded by the clients themselves where ``KVMDBG_PACKETS`` names a
folder: what :mod:`tests.packets` makes the README's table of."""

from __future__ import annotations

import itertools
import os
from enum import Enum
from pathlib import Path

_numbers = itertools.count(1)


class Recorded(Enum):
    """A column of the table; the value begins the names of its recordings."""

    GDB_13 = "gdb13"
    GDB_18 = "gdb18"
    MI = "mi"
    DAP = "dap"
    LLDB_14 = "lldb14"
    LLDB_23 = "lldb23"
    RAW = "raw"


def new_log(client: Recorded) -> Path | None:
    """Where ``client`` is to write what it sends and gets; None if it is not to."""
    folder = os.environ.get("KVMDBG_PACKETS")
    if not folder:
        return None
    return Path(folder, f"{client.value}.{os.getpid()}-{next(_numbers)}.log")
