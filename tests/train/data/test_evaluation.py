from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_jobs.data.evaluation import IGNORE, EvalBatch, eval_batches, eval_windows
from slipway_jobs.data.shards import TokenDataset, shard_name
from slipway_jobs.errors import UserError


def stream_of(directory: Path, total: int) -> TokenDataset:
    (np.arange(total) % 60_000).astype("<u2").tofile(directory / shard_name(0))
    return TokenDataset(directory, "uint16", (total,), 1, 1, "d", pad_id=0, field="data.evalSources")


def targets(batches: list[EvalBatch]) -> list[tuple[int, int]]:
    """(context token, predicted token) of every prediction: ids are positions in the stream."""
    pairs = []
    for batch in batches:
        rows, columns = np.nonzero(batch.labels != IGNORE)
        assert (columns > 0).all()
        assert len(rows) == batch.targets
        pairs += list(
            zip(batch.input_ids[rows, columns - 1].tolist(), batch.labels[rows, columns].tolist(), strict=True)
        )
    return pairs


@given(st.integers(2, 400), st.integers(2, 40), st.integers(1, 5), st.integers(1, 6))
def test_every_token_is_predicted_once_over_all_ranks(
    tmp_path_factory: pytest.TempPathFactory, total: int, length: int, micro: int, world: int
) -> None:
    data = stream_of(tmp_path_factory.mktemp("eval"), total)
    per_rank = [list(eval_batches(data, length, micro, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in per_rank}) == 1  # collectives need every rank in every batch
    pairs = sorted(pair for batches in per_rank for pair in targets(batches))
    assert pairs == [(token - 1, token) for token in range(1, total)]
    for batches in per_rank:
        for batch in batches:
            assert batch.input_ids.shape == batch.labels.shape
            assert 1 <= batch.input_ids.shape[0] <= micro
            assert batch.input_ids.shape[1] == length


def test_the_short_window_is_padded_at_its_end(tmp_path: Path) -> None:
    [first, last] = list(eval_batches(stream_of(tmp_path, 10), 8, 1))
    assert first.input_ids.tolist() == [list(range(8))]
    assert last.input_ids.tolist() == [[7, 8, 9, 0, 0, 0, 0, 0]]
    assert last.labels.tolist() == [[IGNORE, 8, 9, *[IGNORE] * 5]]
    assert last.targets == 2


def test_a_rank_with_nothing_left_gets_a_batch_without_weight(tmp_path: Path) -> None:
    [batch] = list(eval_batches(stream_of(tmp_path, 8), 8, 4, rank=2, world_size=3))
    assert batch.input_ids.shape == (1, 8)
    assert (batch.labels == IGNORE).all()
    assert batch.targets == 0


def test_windows_and_refusal(tmp_path: Path) -> None:
    assert [eval_windows(total, 8) for total in (0, 1, 2, 8, 9, 15, 16)] == [0, 0, 1, 1, 2, 2, 3]
    with pytest.raises(UserError, match=r"data\.evalSources: 1 held-out token"):
        next(eval_batches(stream_of(tmp_path, 1), 8, 1))
