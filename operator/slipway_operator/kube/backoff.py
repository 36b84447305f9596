"""How long to wait before trying again. Pure arithmetic; the sleeping is done by the caller."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff between `base` and `cap` seconds, each delay drawn from its upper half.

    The draw is never above `cap`, so that `cap` also bounds how late a recovery can be noticed.
    """

    base: float
    cap: float
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not (0 < self.base <= self.cap and self.factor >= 1):
            raise ValueError(f"not a backoff: {self}")

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after that many failures in a row (1 is the first)."""
        # The exponent is bounded because 2.0 ** 1100 is an OverflowError, after 9 hours of retries at the cap.
        ceiling = min(self.cap, self.base * self.factor ** min(max(failures - 1, 0), 64))
        return ceiling * rng.uniform(0.5, 1.0)
