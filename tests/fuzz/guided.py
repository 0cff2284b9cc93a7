"""``python -m tests.fuzz.guided [SECONDS]``: atheris on the RSP cores, where coverage says which
bytes are worth changing further. What it finds it leaves in
this folder; as ``found/NAME.bin`` it is kept."""

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
    seconds, seed = streams.arguments(__doc__)
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate([*streams.REQUESTS, *streams.REPLIES, *streams.known()]):
            Path(corpus, str(number)).write_bytes(data)
        options = [f"-max_total_time={seconds:.0f}", f"-seed={seed}", "-max_len=512", "-timeout=10"]
        atheris.Setup(
            [sys.argv[0], *options, f"-artifact_prefix={Path(__file__).parent}/", corpus], one_input
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
