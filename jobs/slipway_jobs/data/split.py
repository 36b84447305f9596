"""Which part of a split a document falls into.

The place of a document is a hash of the seed and of its own content, so it depends neither on where the document lies
nor on what lies beside it: adding documents moves none of the others, and the same text twice is never on both sides.
A text file's content is its bytes, a row's is the text in its text field (for an evaluation of rows that have no such
text: all of its fields). What is held out of fold i is what every other fold trains on.

Parts are of about equal size only where there are many documents: each falls where its hash says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from slipway_api.split import Split
from slipway_jobs.data.places import RANGE, place
from slipway_jobs.data.sources import Source
from slipway_jobs.errors import UserError


@dataclass(frozen=True, slots=True)
class Part:
    """One side of a split."""

    split: Split
    held_out: bool

    @property
    def key(self) -> list[Any]:
        """What decides which documents are taken, for digests. "0.1" and "0.10" are the same."""
        split = self.split
        share = str(Decimal(split.eval_fraction).normalize()) if split.eval_fraction else [split.fold, split.folds]
        return ["split", share, split.seed, self.held_out]

    def takes(self, content: str) -> bool:
        """Whether a document belongs here. `content` is the SHA-256 of its content, in hexadecimal."""
        return is_held_out(self.split, content) == self.held_out


def is_held_out(split: Split, content: str) -> bool:
    """Whether the document with that SHA-256 falls into the held-out part."""
    where = place(str(split.seed), content)
    if split.eval_fraction is not None:
        return where < Decimal(split.eval_fraction) * RANGE
    assert split.folds is not None
    return where * split.folds // RANGE == split.fold


def part_of(sources: Sequence[Source], split: Split, *, held_out: bool, field: str) -> list[Source]:
    """The sources with nothing but that part in them. Of text files the others are left out here, of rows when they
    are read.

    Raises UserError SplitEmpty where text files alone leave nothing; rows may turn out so later.
    """
    part = Part(split, held_out)
    found = []
    for source in sources:
        if source.format != "text":
            found.append(replace(source, part=part))
            continue
        taken = [
            (file, digest) for file, digest in zip(source.files, source.file_digests, strict=True) if part.takes(digest)
        ]
        if taken:
            files, digests = zip(*taken, strict=True)
            found.append(replace(source, part=part, files=files, file_digests=digests))
    if not found:
        raise nothing_in(part, field)
    return found


def nothing_in(part: Part, field: str) -> UserError:
    """The error for a part without a single document."""
    which = "held-out part" if part.held_out else "part to train on"
    change = "a larger or smaller evalFraction" if part.split.eval_fraction else "fewer folds"
    return UserError(
        "SplitEmpty", f"{field}: no document falls into the {which}; add documents, or take {change} or another seed"
    )
