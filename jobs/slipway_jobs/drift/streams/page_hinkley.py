"""Page-Hinkley (Page 1954): the cumulative deviation of a stream from its usual mean, less an allowance per value.

    up[t]   = max(0, up[t-1]   + x - mean - allowance)      alarm when either exceeds the threshold
    down[t] = max(0, down[t-1] - x + mean - allowance)

Quick for a small lasting change, where ADWIN needs a larger one. A threshold chosen by taste means nothing, so
`run_length_threshold` computes the one whose mean run length to a false alarm is at least what is asked for (Lorden
1971): ln(run length) / theta, where theta > 0 solves E exp(theta·(x - mean - allowance)) = 1 over the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _exponent(deviations: NDArray[np.float64]) -> float:
    """The positive root of log E exp(theta·d) for deviations with a negative mean; infinite if none is positive."""
    largest = float(deviations.max())
    if largest <= 0:
        return math.inf

    def cumulant(theta: float) -> float:
        scaled = theta * deviations
        top = float(scaled.max())
        return top + math.log(float(np.exp(scaled - top).mean()))

    high = 1.0 / largest
    while cumulant(high) < 0:
        high *= 2
    low = 0.0
    for _ in range(100):  # bisection: convex, negative up to the root, positive after it
        middle = (low + high) / 2
        low, high = (middle, high) if cumulant(middle) < 0 else (low, middle)
    return low


def run_length_threshold(reference: NDArray[Any], allowance: float, run_length: float) -> float:
    """The threshold for both sides together. Raises ValueError for an empty reference or an allowance not above 0.

    A reference without spread gives a small positive threshold: any lasting change then counts.
    """
    values = np.asarray(reference, dtype=np.float64)
    if values.size == 0 or not allowance > 0 or not run_length > 1:
        raise ValueError("a reference, an allowance above 0 and a run length above 1 are needed")
    deviations = values - values.mean()
    exponent = min(_exponent(deviations - allowance), _exponent(-deviations - allowance))
    return max(4 * allowance, math.log(2 * run_length) / exponent)  # 2: either side may be the false one


@dataclass(frozen=True)
class Shift:
    """An alarm: how the mean moved since the sum last stood at zero, over how many values."""

    amount: float
    values: int


class PageHinkley:
    """One stream of finite numbers; NaN and infinities raise ValueError."""

    def __init__(self, mean: float, allowance: float, threshold: float) -> None:
        if not (math.isfinite(mean) and allowance > 0 and threshold > 0):
            raise ValueError("a finite mean, and an allowance and threshold above 0 are needed")
        self.mean, self.allowance, self.threshold = mean, allowance, threshold
        self.reset()

    def reset(self) -> None:
        """Forget what has been seen."""
        self._up = self._down = 0.0
        self._up_since = self._down_since = 0

    @property
    def statistic(self) -> float:
        """The larger of the two sums."""
        return max(self._up, self._down)

    def add(self, value: float) -> Shift | None:
        """Take a value; the shift that it reveals, if it does. The sums then start anew."""
        if not math.isfinite(value):
            raise ValueError(f"Page-Hinkley takes finite values, not {value!r}")
        deviation = value - self.mean
        up = self._up + deviation - self.allowance
        if up > 0:
            self._up = up
            self._up_since += 1
        else:
            self._up, self._up_since = 0.0, 0
        down = self._down - deviation - self.allowance
        if down > 0:
            self._down = down
            self._down_since += 1
        else:
            self._down, self._down_since = 0.0, 0
        if up <= self.threshold >= down:
            return None
        if self._up >= self._down:
            shift = Shift(self._up / self._up_since + self.allowance, self._up_since)
        else:
            shift = Shift(-self._down / self._down_since - self.allowance, self._down_since)
        self.reset()
        return shift

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        return {"up": self._up, "down": self._down, "upSince": self._up_since, "downSince": self._down_since}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another one stopped."""
        self._up, self._down = float(state["up"]), float(state["down"])
        self._up_since, self._down_since = int(state["upSince"]), int(state["downSince"])
