from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_jobs.data.order import (
    epoch_permutation,
    global_batch,
    micro_batches,
    rank_slice,
    sample_index,
    samples,
    steps_of_epochs,
)

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 500)


@given(seeds, sizes, st.integers(0, 5))
def test_every_sequence_once_per_epoch(seed: int, n: int, epoch: int) -> None:
    assert sorted(samples(seed, epoch * n, (epoch + 1) * n, n).tolist()) == list(range(n))


@given(seeds, sizes, st.integers(1, 64), st.integers(0, 40))
def test_a_step_computed_is_the_step_reached(seed: int, n: int, batch: int, step: int) -> None:
    reached = list(itertools.islice((sample_index(seed, g, n) for g in itertools.count()), (step + 1) * batch))
    assert global_batch(seed, step, batch, n).tolist() == reached[step * batch :]


@given(seeds, sizes, st.integers(1, 6), st.integers(0, 10))
def test_the_world_size_changes_nothing(seed: int, n: int, micro: int, step: int) -> None:
    batch = global_batch(seed, step, micro * 24, n)
    for world in (1, 2, 3, 4, 6, 8, 12, 24):
        parts = [list(micro_batches(rank_slice(batch, rank, world), micro)) for rank in range(world)]
        assert {len(part) for part in parts} == {24 // world}
        assert np.concatenate([m for part in parts for m in part]).tolist() == batch.tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_permutation(seed, epoch, 50).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_golden() -> None:
    """A run that is resumed with a newer release must see the same order: this line may never change."""
    assert samples(7, 0, 12, 10).tolist() == GOLDEN


def test_the_order_is_uniform_enough() -> None:
    first = [sample_index(seed, 0, 8) for seed in range(4000)]
    counts = np.bincount(first, minlength=8)
    assert counts.min() > 400
    assert counts.max() < 600


@pytest.mark.parametrize(("rank", "world"), [(0, 3), (2, 2), (-1, 2)])
def test_an_uneven_or_impossible_split_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=r"rank|split"):
        rank_slice(np.arange(4), rank, world)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="whole number"):
        list(micro_batches(np.arange(5), 2))
    with pytest.raises(ValueError, match="at least one"):
        samples(0, 0, 1, 0)


@given(st.integers(1, 20), st.integers(1, 50), sizes)
def test_steps_of_epochs(epochs: int, batch: int, n: int) -> None:
    steps = steps_of_epochs(epochs, batch, n)
    seen = np.bincount(samples(3, 0, steps * batch, n), minlength=n)
    assert seen.min() >= epochs
    assert (steps - 1) * batch < epochs * n


GOLDEN = [8, 4, 1, 6, 3, 2, 7, 5, 9, 0, 3, 9]
