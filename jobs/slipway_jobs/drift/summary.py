"""One window of traffic as sketches: what is compared, stored and merged instead of the requests themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.columns import Columns
from slipway_jobs.drift.errors import SketchError
from slipway_jobs.drift.features import Features
from slipway_jobs.drift.signals import EMBEDDING, TOKEN_RANKS
from slipway_jobs.drift.sketches.categories import Categories
from slipway_jobs.drift.sketches.histogram import Histogram
from slipway_jobs.drift.sketches.rank_counts import RankCounts
from slipway_jobs.drift.sketches.reservoir import Reservoir

EMBEDDINGS_KEPT = 256  # per window: MMD is quadratic


class CountSketch(Protocol):
    """What histogram, categories and rank counts have in common."""

    missing: int

    @property
    def counts(self) -> NDArray[np.int64]: ...

    @property
    def size(self) -> int: ...

    def state(self) -> dict[str, Any]: ...


_SKETCHES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "Histogram": Histogram.of_state,
    "Categories": Categories.of_state,
    "RankCounts": RankCounts.of_state,
}


@dataclass
class Summary:
    """Sketches by signal, a sample of embeddings, and how many records went in."""

    sketches: dict[str, Histogram | Categories | RankCounts]
    embeddings: Reservoir
    records: int = 0

    @classmethod
    def empty(cls, layout: Mapping[str, Histogram | Categories | RankCounts], seed: int) -> Summary:
        """Sketches like those of the reference, with nothing in them."""
        sketches: dict[str, Histogram | Categories | RankCounts] = {}
        for name, sketch in layout.items():
            if isinstance(sketch, Histogram):
                sketches[name] = Histogram(sketch.edges)
            elif isinstance(sketch, Categories):
                sketches[name] = Categories(sketch.names)
            else:
                sketches[name] = RankCounts(sketch.counts.size)
        return cls(sketches, Reservoir(EMBEDDINGS_KEPT, seed))

    def add(self, identity: str, record: Features) -> None:
        """Count one record. `identity`: its request id, which decides whether its embedding is kept."""
        self.records += 1
        for name, sketch in self.sketches.items():
            if isinstance(sketch, Histogram):
                sketch.add(record.numbers.get(name))
            elif isinstance(sketch, Categories):
                sketch.add(record.categories.get(name))
            elif name == TOKEN_RANKS:
                sketch.add(record.ranks)
        if record.embedding is not None and bool(np.isfinite(record.embedding).all()):
            self.embeddings.add(identity, record.embedding.astype(float).tolist())

    def add_columns(self, columns: Columns, identity: str = "") -> None:
        """Count many records; their identities are `identity` and the row number."""
        self.records += columns.rows
        for name, sketch in self.sketches.items():
            if isinstance(sketch, Histogram):
                if name in columns.numbers:
                    sketch.add_many(columns.numbers[name])
                else:
                    sketch.missing += columns.rows
            elif isinstance(sketch, Categories):
                sketch.add_many(columns.categories.get(name, [None] * columns.rows))
            elif columns.ranks is not None:
                sketch.add_many(columns.ranks)
            else:
                sketch.missing += columns.rows
        if columns.embeddings is not None:
            for row, embedding in enumerate(columns.embeddings):
                if np.isfinite(embedding).all():
                    self.embeddings.add(f"{identity}{row}", embedding.astype(float).tolist())

    def merged(self, other: Self) -> Summary:
        """Both together. Raises SketchError if they were made for different profiles."""
        if self.sketches.keys() != other.sketches.keys():
            raise SketchError("two windows with different signals", "Rebuild them with the profile in use.")
        sketches: dict[str, Histogram | Categories | RankCounts] = {
            name: sketch.merged(other.sketches[name])  # type: ignore[arg-type]  # of one class, or it raises
            for name, sketch in self.sketches.items()
            if _same_class(name, sketch, other.sketches[name])
        }
        return Summary(sketches, self.embeddings.merged(other.embeddings), self.records + other.records)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "records": self.records,
            "embeddings": self.embeddings.state(),
            "sketches": {
                name: {"sketch": type(sketch).__name__, **sketch.state()} for name, sketch in self.sketches.items()
            },
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Summary:
        """From `state`. Raises SketchError for what is none."""
        sketches = {}
        for name, sketch in state["sketches"].items():
            kind = sketch.get("sketch")
            if kind not in _SKETCHES:
                raise SketchError(f"{name}: unknown sketch {kind!r}")
            sketches[name] = _SKETCHES[kind](sketch)
        return cls(sketches, Reservoir.of_state(state["embeddings"]), int(state["records"]))

    def embedding_rows(self) -> NDArray[np.float64]:
        """The sampled embeddings, shape (rows, width); (0, 0) without any."""
        items = self.embeddings.items()
        return np.array(items, dtype=np.float64) if items else np.zeros((0, 0))

    def size_of(self, signal: str) -> int:
        """How many values a signal rests on."""
        return self.embeddings.size if signal == EMBEDDING else self.sketches[signal].size


def _same_class(name: str, one: object, other: object) -> bool:
    if type(one) is not type(other):
        raise SketchError(f"{name}: a {type(one).__name__} cannot be merged with a {type(other).__name__}")
    return True
