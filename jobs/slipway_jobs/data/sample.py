"""Which documents of a source are taken when `data.sources[].sample` asks for a part of them.

The same documents each time, wherever they lie and whatever lies beside them, as in a split (split.py). The salt is not
a split's, so a sample and a split of the same seed cut independently: else a sample of a tenth would lie within the
tenth that is held out. A smaller fraction of the same seed takes a subset.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from slipway_api.split import Sample
from slipway_jobs.data.places import RANGE, content_of, place


@dataclass(frozen=True, slots=True)
class Draw:
    """A part of a source's documents."""

    sample: Sample

    @property
    def key(self) -> list[Any]:
        """What decides which documents are taken, for digests. "0.1" and "0.10" are the same."""
        return ["sample", str(Decimal(self.sample.fraction).normalize()), self.sample.seed]

    def takes(self, content: str) -> bool:
        """Whether a document is taken. `content` is the SHA-256 of its content, in hexadecimal."""
        return place(f"sample:{self.sample.seed}", content) < Decimal(self.sample.fraction) * RANGE

    def takes_text(self, text: str) -> bool:
        """The same for a row, from its text."""
        return self.takes(content_of(text))
