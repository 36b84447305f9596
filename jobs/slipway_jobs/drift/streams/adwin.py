"""ADWIN (Bifet and Gavaldà 2007): a window over a stream that grows while its mean holds and drops its past when not.

The window is kept as buckets of 1, 2, 4, ... grains, at most `per_row` of each size, so W values take O(log W) memory.
A grain is a few values in a row; the paper's are single values, which costs several times more and finds a change no
sooner, since cuts are looked for now and then only.
Whenever two halves at some bucket border differ in mean by more than the paper's bound (its eq. 3.1, with the variance)
the older bucket is dropped. `delta` is the confidence of that bound, not a rate of false alarms: the bound is loose,
and what it means in windows is measured by benchmarks/drift.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Bucket(NamedTuple):
    """`size` values with their sum and the sum of squared deviations from their mean."""

    size: int
    total: float
    deviation: float

    def merged(self, other: Bucket) -> Bucket:
        (n, total, deviation), (m, more, other_deviation) = self, other
        difference = total / n - more / m
        return Bucket(n + m, total + more, deviation + other_deviation + difference * difference * n * m / (n + m))


@dataclass(frozen=True)
class Change:
    """A cut: the means before and after it, and how many values each rests on."""

    before: float
    after: float
    before_size: int
    after_size: int


class Adwin:
    """One stream of values in [0, 1]; others raise ValueError (scale losses first), NaN too."""

    def __init__(
        self, delta: float = 0.002, per_row: int = 5, every: int = 64, smallest: int = 16, grain: int = 16
    ) -> None:
        """`every`: look for a cut at each so many values, a multiple of `grain`. `smallest`: values on each side."""
        if not 0 < delta < 1 or min(per_row, smallest, grain) < 1 or every < grain or every % grain:
            raise ValueError("delta lies between 0 and 1, the others are at least 1, every is a multiple of grain")
        self.delta, self.per_row, self.every, self.smallest, self.grain = delta, per_row, every, smallest, grain
        self._rows: list[deque[Bucket]] = [deque()]  # row i: buckets of 2^i grains, the oldest first
        self._whole = Bucket(0, 0.0, 0.0)
        self._pending: list[float] = []  # less than a grain
        self._seen = 0

    @property
    def size(self) -> int:
        """Values in the window, whole grains."""
        return self._whole.size

    @property
    def mean(self) -> float:
        """Mean of the window, 0 while it is empty."""
        return self._whole.total / self._whole.size if self._whole.size else 0.0

    @property
    def buckets(self) -> int:
        """How many buckets are kept: what memory is proportional to."""
        return sum(len(row) for row in self._rows)

    def add(self, value: float) -> Change | None:
        """Take a value; the change that it reveals, if it does. The window is then already without its past."""
        if not 0 <= value <= 1:
            raise ValueError(f"ADWIN takes values between 0 and 1, not {value!r}")
        pending = self._pending
        pending.append(float(value))
        if len(pending) < self.grain:
            return None
        total = sum(pending)
        squares = sum([x * x for x in pending])
        self._insert(Bucket(self.grain, total, max(0.0, squares - total * total / self.grain)))
        pending.clear()
        self._seen += self.grain
        return None if self._seen % self.every else self._shrink()

    def _insert(self, bucket: Bucket) -> None:
        self._whole = bucket if self._whole.size == 0 else self._whole.merged(bucket)
        self._rows[0].append(bucket)
        level = 0
        while len(self._rows[level]) > self.per_row:
            if level + 1 == len(self._rows):
                self._rows.append(deque())
            oldest, next_oldest = self._rows[level].popleft(), self._rows[level].popleft()
            self._rows[level + 1].append(oldest.merged(next_oldest))
            level += 1

    def _oldest_first(self) -> Iterator[Bucket]:
        for row in reversed(self._rows):
            yield from row

    def _shrink(self) -> Change | None:
        change: Change | None = None
        while (found := self._cut()) is not None:
            # The largest contrast of the first look is the change; dropping more of the past only sharpens it.
            change = change or found
            self._drop_oldest()
        return change

    def _cut(self) -> Change | None:
        """The border at which the two sides differ the most beyond the bound."""
        whole = self._whole
        if whole.size < 2 * self.smallest:
            return None
        log = math.log(2 * math.log(whole.size) / self.delta)
        variance = whole.deviation / whole.size
        best, best_excess = None, 0.0
        spread, linear = 2 * variance * log, 2 / 3 * log
        size, total = 0, 0.0
        for count, part, _ in self._oldest_first():
            size += count
            total += part
            rest = whole.size - size
            if rest < self.smallest:
                break
            if size < self.smallest:
                continue
            harmonic = whole.size / (size * rest)
            bound = math.sqrt(harmonic * spread) + harmonic * linear
            before, after = total / size, (whole.total - total) / rest
            excess = abs(before - after) - bound
            if excess > best_excess:
                best, best_excess = Change(before, after, size, rest), excess
        return best

    def _drop_oldest(self) -> None:
        while not self._rows[-1]:
            self._rows.pop()
        self._rows[-1].popleft()
        if not self._rows[-1] and len(self._rows) > 1:
            self._rows.pop()
        # Added up anew: subtracting would let rounding errors pile up over a long stream.
        whole = Bucket(0, 0.0, 0.0)
        for bucket in self._oldest_first():
            whole = bucket if whole.size == 0 else whole.merged(bucket)
        self._whole = whole

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        return {
            "seen": self._seen,
            "pending": list(self._pending),
            "whole": list(self._whole),
            "rows": [[list(bucket) for bucket in row] for row in self._rows],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another one stopped."""
        self._rows = [deque(Bucket(int(n), float(t), float(d)) for n, t, d in row) for row in state["rows"]] or [
            deque()
        ]
        self._seen = int(state["seen"])
        self._pending = [float(value) for value in state["pending"]]
        size, total, deviation = state["whole"]  # not added up anew: the last bit would differ
        self._whole = Bucket(int(size), float(total), float(deviation))
