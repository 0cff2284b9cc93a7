"""``python -m tests.fuzz [SECONDS]``: hostile bytes to the RSP cores, as hypothesis draws them.

Prints the seed, with which ``--seed`` repeats a run.
"""

from __future__ import annotations

import random
import time

from tests.fuzz.streams import AT_ONCE, REPLIES, REQUESTS, arguments, check, drawn, known, stream


def one(rng: random.Random) -> None:
    """One of each side's."""
    check(rng, stream(rng, REQUESTS), stream(rng, REPLIES))


def main() -> None:
    """Fuzz for a while."""
    chosen = arguments(__doc__)
    for data in known():
        check(random.Random(chosen.seed), data, data)
    end = time.monotonic() + chosen.seconds
    rounds = 0
    while time.monotonic() < end:
        drawn(one, chosen.seed + rounds, "core")
        rounds += AT_ONCE
    print(f"{rounds} streams, nothing found")


if __name__ == "__main__":
    main()
