"""How many tokens of each rank bucket a set of texts had: the sum of what `features` counts for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.errors import SketchError


class RankCounts:
    """Token counts of shape (buckets,), and over how many texts: tokens of one text are not independent."""

    def __init__(self, buckets: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros(buckets, dtype=np.int64)
        self.size = 0
        self.missing = 0

    def add(self, counts: NDArray[Any] | None) -> None:
        """Count one text."""
        if counts is None or not counts.any():
            self.missing += 1
            return
        self.counts += counts
        self.size += 1

    def add_many(self, counts: NDArray[Any]) -> None:
        """Count texts of shape (texts, buckets)."""
        full = counts.any(1)
        self.counts += counts.sum(0)
        self.size += int(full.sum())
        self.missing += int((~full).sum())

    def merged(self, other: RankCounts) -> RankCounts:
        """Both together. Raises SketchError if the buckets differ."""
        if other.counts.size != self.counts.size:
            raise SketchError("rank counts of different vocabularies", "Rebuild the window with the profile in use.")
        result = RankCounts(self.counts.size)
        result.counts = self.counts + other.counts
        result.size, result.missing = self.size + other.size, self.missing + other.missing
        return result

    def state(self) -> dict[str, Any]:
        return {"counts": self.counts.tolist(), "size": self.size, "missing": self.missing}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> RankCounts:
        result = cls(len(state["counts"]))
        result.counts = np.array(state["counts"], dtype=np.int64)
        result.size, result.missing = int(state["size"]), int(state["missing"])
        return result
