"""``python -m tests.fuzz [SECONDS]``: hostile bytes to the RSP cores, as hypothesis draws them;
what it finds it makes small.

Prints the seed, with which ``--seed`` repeats a run.
"""

from __future__ import annotations

import random
import time

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.streams import REPLIES, REQUESTS, arguments, check, known, stream

_AT_ONCE = 1000
"""Streams that hypothesis draws between two looks at the clock."""


def main() -> None:
    """Fuzz for a while."""
    seconds, seed = arguments(__doc__)
    for data in known():
        check(random.Random(seed), data, data)
    end = time.monotonic() + seconds
    rounds = 0

    @settings(
        max_examples=_AT_ONCE, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False))
    def one(rng: random.Random) -> None:
        check(rng, stream(rng, REQUESTS), stream(rng, REPLIES))

    while time.monotonic() < end:
        hypothesis.seed(seed + rounds)(one)()
        rounds += _AT_ONCE
    print(f"{rounds} streams, nothing found")


if __name__ == "__main__":
    main()
