"""Sketches: merging in any order and grouping gives what one sketch of everything gives; JSON keeps them whole."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_jobs.drift.errors import SketchError
from slipway_jobs.drift.sketches.categories import Categories
from slipway_jobs.drift.sketches.histogram import Histogram
from slipway_jobs.drift.sketches.rank_counts import RankCounts
from slipway_jobs.drift.sketches.reservoir import Reservoir

numbers = st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.none(), max_size=30)
words = st.lists(st.sampled_from(["a", "b", "c", "new", None]), max_size=30)
keys = st.lists(st.text(min_size=1, max_size=4), max_size=40)


def histogram(values: list[float | None]) -> Histogram:
    sketch = Histogram([0.0, 1.0, 2.5])
    for value in values:
        sketch.add(value)
    return sketch


def categories(values: list[str | None]) -> Categories:
    sketch = Categories(["a", "b"])
    sketch.add_many(values)
    return sketch


def reservoir(values: list[str]) -> Reservoir:
    sketch = Reservoir(7, seed=5)
    for value in values:
        sketch.add(value, [value])
    return sketch


def same(*sketches: Any) -> bool:
    states = [json.dumps(sketch.state()) for sketch in sketches]
    assert all(
        type(s).of_state(json.loads(state)).state() == s.state() for s, state in zip(sketches, states, strict=True)
    )
    return len(set(states)) == 1


@settings(max_examples=50)
@given(numbers, numbers, numbers)
def test_histograms_merge(a: Any, b: Any, c: Any) -> None:
    x, y, z = histogram(a), histogram(b), histogram(c)
    assert same(x.merged(y).merged(z), x.merged(y.merged(z)), z.merged(x).merged(y), histogram(a + b + c))


@settings(max_examples=50)
@given(words, words, words)
def test_categories_merge(a: Any, b: Any, c: Any) -> None:
    x, y, z = categories(a), categories(b), categories(c)
    assert same(x.merged(y).merged(z), x.merged(y.merged(z)), z.merged(x).merged(y), categories(a + b + c))


@settings(max_examples=50)
@given(keys, keys, keys)
def test_reservoirs_merge_and_know_no_order(a: Any, b: Any, c: Any) -> None:
    x, y, z = reservoir(a), reservoir(b), reservoir(c)
    assert same(x.merged(y).merged(z), x.merged(y.merged(z)), z.merged(x).merged(y), reservoir(a + b + c))
    assert reservoir(a + b).items() == reservoir(b + a + a).items()
    assert reservoir(a).size <= 7


def test_a_reservoir_is_a_uniform_sample() -> None:
    hits = np.zeros(20)
    for seed in range(400):
        sketch = Reservoir(5, seed)
        for number in range(20):
            sketch.add(str(number), number)
        hits[sketch.items()] += 1
    assert abs(hits - 100).max() < 40  # 100 expected of each, with a standard deviation of 9


@settings(max_examples=50)
@given(numbers)
def test_one_by_one_is_all_at_once(values: list[float | None]) -> None:
    array = np.array([math.nan if value is None else value for value in values])
    at_once = Histogram([0.0, 1.0, 2.5])
    at_once.add_many(array)
    assert at_once.state() == histogram(values).state()


def test_rank_counts_know_how_many_texts_they_come_from() -> None:
    one, both = RankCounts(3), RankCounts(3)
    one.add(np.array([1, 2, 0]))
    one.add(None)
    both.add_many(np.array([[1, 2, 0], [0, 0, 0]]))
    assert one.state() == both.state() == {"counts": [1, 2, 0], "size": 1, "missing": 1}
    assert same(one.merged(both), both.merged(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Histogram([0.0]), Histogram([1.0])),
        (Categories(["a"]), Categories(["b"])),
        (RankCounts(2), RankCounts(3)),
        (Reservoir(2, 0), Reservoir(2, 1)),
    ],
)
def test_what_was_made_otherwise_is_not_merged(one: Any, other: Any) -> None:
    with pytest.raises(SketchError):
        one.merged(other)


@pytest.mark.parametrize("edges", [[], [1.0, 1.0], [2.0, 1.0], [math.nan, 1.0]])
def test_bins_that_are_none_are_refused(edges: list[float]) -> None:
    with pytest.raises(SketchError, match="ascend"):
        Histogram(edges)
