"""``python -m kvmdbg.owner FD``: an owner process; FD is its end of the start channel."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys

from kvmdbg.errors import KvmdbgError
from kvmdbg.owner.owner import run_owner
from kvmdbg.owner.protocol import Failure
from kvmdbg.owner.start import Failed, ReportChannel


async def _main(sock: socket.socket) -> int:
    channel = ReportChannel(sock)
    try:
        await run_owner(channel)
    except KvmdbgError as error:
        logging.error("%s", error)
        channel.finish(Failed(Failure.of(error)))
        return error.exit_status
    except asyncio.CancelledError:
        return 1  # abandoned before it was ready
    return 0


def _detach() -> None:
    """Become nobody's child: whoever started us may run long, and would have to reap us."""
    if os.fork():
        os._exit(0)


if __name__ == "__main__":
    _detach()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
    )
    sys.exit(asyncio.run(_main(socket.socket(fileno=int(sys.argv[1])))))
