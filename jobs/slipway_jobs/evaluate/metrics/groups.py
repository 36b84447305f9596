"""Which groups of a slice are looked at: those that it names, else the twenty most frequent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from slipway_api.evaljob import Slice
from slipway_jobs.evaluate.examples import ScoredExample

FREQUENT = 20


def groups_of(one: Slice, examples: Sequence[ScoredExample]) -> list[str]:
    """The groups, the most frequent first, by name where equal."""
    if one.values:
        return list(one.values)
    counts = Counter(example.fields[one.field] for example in examples if one.field in example.fields)
    return sorted(counts, key=lambda label: (-counts[label], label))[:FREQUENT]
