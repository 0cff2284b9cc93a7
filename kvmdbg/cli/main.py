"""``kvmdbg``: the one place where exceptions become a sentence and an exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable

from kvmdbg.cli.arguments import build_parser, parse
from kvmdbg.cli.show import say
from kvmdbg.errors import KvmdbgError

INTERRUPTED = 130
TERMINATED = 143


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the result is the exit status."""
    _complete_streams()
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except KvmdbgError as error:
        say(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # nobody reads it any more
        return 1
    except OSError as error:
        # Failures of what we work on have a KvmdbgError; left is what we write to.
        _drop_output()
        say(f"cannot write to {error.filename or 'standard output'}: {error.strerror}")
        return 1


def _complete_streams() -> None:
    """Closed ones become /dev/null: Python has None there, and a socket could get their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until we end


def _drop_output() -> None:
    """What is still buffered would fail once more as Python ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _run(argv: list[str]) -> int:
    arguments = parse(argv)
    if arguments.verbose:
        logging.basicConfig(level=logging.INFO, format="kvmdbg: %(message)s")
    match arguments.command:
        case "completion":
            import shtab

            print(shtab.complete(build_parser(), arguments.shell))
            return 0
        case "ls":
            from kvmdbg.cli import ls

            return ls.run()
        case "doctor":
            from kvmdbg.cli import doctor

            return doctor.run(as_json=arguments.json)
        case "images":
            from kvmdbg.cli import images

            return images.run(arguments.image)
    # Only now: asyncio's world takes as long to import as the rest of a short command.
    from kvmdbg.cli import debug

    command = debug.COMMANDS[arguments.command]
    return asyncio.run(_until_told_to_end(command(arguments)))


async def _until_told_to_end(command: Awaitable[int]) -> int:
    """SIGTERM ends a command in good order, as Ctrl-C does: the VM's owner hears of it. Not so a
    terminal that is lost: the VM waits for who comes back."""
    task = asyncio.ensure_future(command)
    told = False

    def end() -> None:
        nonlocal told
        told = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    try:
        return await task
    except asyncio.CancelledError:
        if not told:
            raise
        return TERMINATED


if __name__ == "__main__":
    sys.exit(main())
