"""``python -m tests.fuzz.guided [SECONDS]``: atheris on the RSP cores, where coverage says which
bytes are worth changing further. What finds new coverage is kept for later runs, in the user's
cache; what fails is left in this folder, and as ``found/NAME.bin`` it is kept."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kvmdbg.rsp"]):
    from tests.fuzz import streams


def one_input(data: bytes) -> None:
    """The same bytes to both roles; how they are cut follows from them."""
    streams.check(random.Random(data), data, data)


def main() -> None:
    """Fuzz for a while; libFuzzer does not return."""
    chosen = streams.arguments(__doc__)
    corpus = streams.kept("guided")
    print(f"{len(list(corpus.iterdir()))} streams are kept in {corpus}", flush=True)
    with tempfile.TemporaryDirectory() as seeds:
        for number, data in enumerate([*streams.REQUESTS, *streams.REPLIES, *streams.known()]):
            Path(seeds, str(number)).write_bytes(data)
        options = [
            f"-max_total_time={chosen.seconds:.0f}",
            f"-seed={chosen.seed}",
            "-max_len=512",
            "-timeout=10",
            f"-artifact_prefix={Path(__file__).parent}/",
        ]
        # It writes to the first folder.
        atheris.Setup([sys.argv[0], *options, str(corpus), seeds], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
