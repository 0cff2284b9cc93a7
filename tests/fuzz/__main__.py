"""``python -m tests.fuzz [SECONDS]``: hostile bytes against the RSP cores, by chance.

Prints the seed, with which ``--seed`` repeats a run.
"""

from __future__ import annotations

import random
import time

from tests.fuzz.streams import REPLIES, REQUESTS, arguments, check, known, stream


def main() -> None:
    """Fuzz for a while."""
    seconds, seed = arguments(__doc__)
    rng = random.Random(seed)
    for data in known():
        check(rng, data, data)
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        check(rng, stream(rng, REQUESTS), stream(rng, REPLIES))
        rounds += 1
    print(f"{rounds} streams, nothing found")


if __name__ == "__main__":
    main()
