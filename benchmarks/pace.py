"""How fast this machine is at this moment, so that a limit set on a faster one is not taken for a fault."""

import time

USUAL_SECONDS = 0.8  # of the loop below, on the machine and day on which the limits were set (AMD EPYC, 2026-11-28)


def pace() -> float:
    """Return how many times as long as usual a plain loop takes, at least 1."""
    began = time.process_time()
    total = 0
    for number in range(10_000_000):
        total += number * number
    return max(1.0, (time.process_time() - began) / USUAL_SECONDS)
