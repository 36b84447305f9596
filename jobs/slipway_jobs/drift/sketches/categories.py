"""Counts of categories that the reference fixed; all others together are one more, so no traffic can make it grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.errors import SketchError

MAX_CATEGORIES = 256


def most_frequent(counts: Counter[str], limit: int = MAX_CATEGORIES) -> list[str]:
    """The categories to keep: the most frequent ones, equal counts by name."""
    return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]]


class Categories:
    """Counts in the order of `names`, then of everything else."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._index = {name: index for index, name in enumerate(self.names)}
        if len(self._index) != len(self.names) or len(self.names) > MAX_CATEGORIES:
            raise SketchError(f"categories must be distinct and at most {MAX_CATEGORIES}")
        self._counts = [0] * (len(self.names) + 1)
        self.missing = 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """Shape (len(names) + 1,); the last is every other category."""
        return np.array(self._counts, dtype=np.int64)

    @property
    def size(self) -> int:
        """Values counted."""
        return sum(self._counts)

    def add(self, value: str | None) -> None:
        """Count one value."""
        if value is None:
            self.missing += 1
            return
        self._counts[self._index.get(value, len(self.names))] += 1

    def add_many(self, values: Iterable[str | None]) -> None:
        """Count several."""
        for value in values:
            self.add(value)

    def merged(self, other: Categories) -> Categories:
        """Both together. Raises SketchError if the categories differ."""
        if other.names != self.names:
            raise SketchError("two counts of different categories", "Rebuild the window with the profile in use.")
        result = Categories(self.names)
        result._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        result.missing = self.missing + other.missing
        return result

    def state(self) -> dict[str, Any]:
        return {"names": self.names, "counts": self._counts, "missing": self.missing}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Categories:
        result = cls(state["names"])
        if len(state["counts"]) != len(result._counts):
            raise SketchError(f"{len(state['counts'])} counts for {len(result._counts)} categories")
        result._counts = [int(count) for count in state["counts"]]
        result.missing = int(state["missing"])
        return result
