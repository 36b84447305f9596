"""Records side by side: one array per feature, a row per record. NaN and None stand for what a record lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.features import RANK_BUCKETS, Features


@dataclass
class Columns:
    """`numbers` and `categories`: arrays of shape (rows,); `ranks`: (rows, RANK_BUCKETS); `embeddings`: (rows, width).

    A record without ranks has a row of zeros, one without an embedding a row of NaN.
    """

    rows: int
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    categories: dict[str, list[str | None]] = field(default_factory=dict)
    ranks: NDArray[np.int64] | None = None
    embeddings: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, records: Sequence[Features]) -> Columns:
        """Raises ValueError for embeddings of different widths."""
        numbers = sorted({name for record in records for name in record.numbers})
        categories = sorted({name for record in records for name in record.categories})
        ranks = [record.ranks if record.ranks is not None else np.zeros(RANK_BUCKETS, np.int64) for record in records]
        widths = {record.embedding.shape for record in records if record.embedding is not None}
        if len(widths) > 1:
            raise ValueError(f"embeddings of different shapes: {sorted(widths)}")
        embeddings = None
        if widths:
            missing = np.full(next(iter(widths)), np.nan, dtype=np.float32)
            embeddings = np.stack([missing if record.embedding is None else record.embedding for record in records])
        return cls(
            len(records),
            {name: np.array([record.numbers.get(name, np.nan) for record in records]) for name in numbers},
            {name: [record.categories.get(name) for record in records] for name in categories},
            np.stack(ranks) if any(record.ranks is not None for record in records) else None,
            embeddings,
        )

    def take(self, rows: NDArray[Any]) -> Columns:
        """The rows with these numbers, in this order."""
        return Columns(
            len(rows),
            {name: values[rows] for name, values in self.numbers.items()},
            {name: [values[row] for row in rows.tolist()] for name, values in self.categories.items()},
            None if self.ranks is None else self.ranks[rows],
            None if self.embeddings is None else self.embeddings[rows],
        )
