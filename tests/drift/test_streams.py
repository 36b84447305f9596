"""ADWIN against a window that keeps every value, Page-Hinkley against its definition; memory and promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_jobs.drift.concept import ConceptStream
from slipway_jobs.drift.streams.adwin import Adwin
from slipway_jobs.drift.streams.page_hinkley import PageHinkley, run_length_threshold

DELTA, SMALLEST, EVERY = 0.01, 4, 8


class EveryValue:
    """ADWIN by its definition: all values, all cuts."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.seen = 0

    def add(self, value: float) -> bool:
        self.values.append(value)
        self.seen += 1
        if self.seen % EVERY:
            return False
        changed = False
        while self._cut():
            self.values.pop(0)
            changed = True
        return changed

    def _cut(self) -> bool:
        count = len(self.values)
        if count < 2 * SMALLEST:
            return False
        array = np.array(self.values)
        log = math.log(2 * math.log(count) / DELTA)
        for size in range(SMALLEST, count - SMALLEST + 1):
            harmonic = 1 / size + 1 / (count - size)
            bound = math.sqrt(2 * harmonic * array.var() * log) + 2 / 3 * harmonic * log
            if abs(array[:size].mean() - array[size:].mean()) > bound:
                return True
        return False


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_with_a_bucket_for_each_value_adwin_is_its_definition(seed: int, before: float, after: float) -> None:
    generator = np.random.default_rng(seed)
    stream = np.concatenate([generator.random(80) < before, generator.random(80) < after]).astype(float)
    exact, adwin = EveryValue(), Adwin(DELTA, per_row=10**6, every=EVERY, smallest=SMALLEST, grain=1)
    for value in stream.tolist():
        assert (adwin.add(value) is not None) == exact.add(value)
        assert adwin.size == len(exact.values)
        assert adwin.mean == pytest.approx(float(np.mean(exact.values)) if exact.values else 0.0, abs=1e-9)


def test_adwin_follows_a_change_in_logarithmic_memory() -> None:
    generator = np.random.default_rng(0)
    adwin = Adwin()
    for value in (generator.random(50_000) < 0.1).tolist():
        assert adwin.add(float(value)) is None
    assert adwin.size == 50_000
    assert adwin.buckets <= 6 * (math.log2(50_000 / 5) + 2)
    changes = []
    for place, value in enumerate((generator.random(2000) < 0.5).tolist()):
        changes += [(place, change)] if (change := adwin.add(float(value))) else []
    assert changes[0][0] < 200
    assert changes[0][1].before == pytest.approx(0.1, abs=0.02)
    assert adwin.size < 2200 and adwin.mean == pytest.approx(0.5, abs=0.05)


def test_adwin_goes_on_where_it_was_stopped() -> None:
    stream = np.random.default_rng(1).random(500).tolist() + [0.9] * 300
    whole, part = Adwin(), Adwin()
    changes = [whole.add(value) for value in stream]
    for value in stream[:333]:
        part.add(value)
    resumed = Adwin()
    resumed.restore(part.state())
    assert [resumed.add(value) for value in stream[333:]] == changes[333:]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, math.inf])
def test_adwin_refuses_what_its_bound_does_not_hold_for(wrong: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Adwin().add(wrong)


def test_page_hinkley_is_its_definition() -> None:
    values = np.random.default_rng(2).normal(0.3, 1, 400)
    test = PageHinkley(0.0, 0.1, 1e9)
    for place, value in enumerate(values.tolist()):
        test.add(value)
        sums = np.concatenate([[0.0], np.cumsum(values[: place + 1] - 0.1)])
        down = np.concatenate([[0.0], np.cumsum(-values[: place + 1] - 0.1)])
        assert test.statistic == pytest.approx(max(sums[-1] - sums.min(), down[-1] - down.min()), abs=1e-9)


def test_page_hinkley_keeps_its_run_length_and_finds_a_shift() -> None:
    generator = np.random.default_rng(3)
    reference = (generator.random(4000) < 0.05).astype(float)
    spread = float(reference.std())
    threshold = run_length_threshold(reference, 0.15 * spread, 20_000)
    alarms = 0
    test = PageHinkley(float(reference.mean()), 0.15 * spread, threshold)
    for value in (generator.random(100_000) < reference.mean()).astype(float).tolist():
        alarms += test.add(value) is not None
    assert alarms <= 10  # 5 are allowed on average
    test.reset()
    shift, delay = None, 0
    while shift is None and delay < 2000:
        delay += 1
        shift = test.add(float(generator.random() < 0.12))
    assert shift is not None and delay < 1000
    assert shift.amount == pytest.approx(0.07, abs=0.05)


def test_a_stream_of_errors_reports_and_survives_what_is_no_error() -> None:
    generator = np.random.default_rng(4)
    stream = ConceptStream((generator.random(3000) < 0.05).astype(float), 100_000, 1e-4)
    for value in [None, math.nan, math.inf, *(generator.random(3000) < 0.05).astype(float).tolist()]:
        assert stream.add(value) == []
    assert (stream.missing, stream.seen) == (3, 3000)
    resumed = ConceptStream((np.random.default_rng(4).random(3000) < 0.05).astype(float), 100_000, 1e-4)
    resumed.restore(stream.state())
    tests = {change.test for value in (generator.random(1500) < 0.15) for change in resumed.add(float(value))}
    assert tests == {"adwin", "pageHinkley"}


def test_a_loss_beyond_the_reference_is_cut_and_counted_and_without_a_reference_only_adwin_runs() -> None:
    generator = np.random.default_rng(5)
    stream = ConceptStream(generator.gamma(4, 1, 1000), 10_000, 1e-4)
    changes = [change for value in generator.gamma(4, 4, 500) for change in stream.add(float(value))]
    assert changes and stream.cut > 0
    bare = ConceptStream(np.zeros(0), 10_000, 1e-4)
    found = [change.test for value in [0.0] * 500 + [1.0] * 200 for change in bare.add(value)]
    assert set(found) == {"adwin"}
