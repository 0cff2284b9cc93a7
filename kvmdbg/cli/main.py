"""``kvmdbg``: the one place where exceptions become a sentence and an exit status."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

from kvmdbg.cli.arguments import build_parser, parse
from kvmdbg.cli.show import say
from kvmdbg.errors import KvmdbgError

INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the result is the exit status."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KvmdbgError as error:
        say(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads our output any more
        return 1


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

    command: Callable[..., object] = debug.COMMANDS[arguments.command]
    return asyncio.run(command(arguments))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
