"""Held-out data as batches: every token predicted exactly once, over any number of ranks.

Windows of `sequence_length` tokens overlap by one: the last token of a window is the first, context only, of the
next. So each token of the stream but the very first is a target exactly once, and perplexity is exp(sum of losses /
targets) over all ranks, whatever the world size or micro-batch. The last window may be short; it is padded at its
end, where causal attention cannot look from the tokens before, and its padding has label -100.

All ranks get the same number of batches, because the model's collectives need every rank in every forward pass: a
rank that has run out gets a batch with one row and no target. Sum the loss (do not average: a batch without targets
has no mean) and add up `targets`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from slipway_jobs.data.shards import Ids, TokenDataset
from slipway_jobs.errors import UserError

IGNORE = -100


@dataclass(frozen=True, slots=True)
class EvalBatch:
    """`input_ids` and `labels` are [rows, sequence_length] int64, 1 <= rows <= micro-batch.

    Labels stand at the same place as their ids (the model shifts, as Hugging Face models do); IGNORE is no target.
    The first label of a row is never a target. `targets` counts the predicted tokens.
    """

    input_ids: Ids
    labels: Ids
    targets: int


def eval_windows(tokens: int, sequence_length: int) -> int:
    """Windows over a stream of that many tokens."""
    return -(-(tokens - 1) // (sequence_length - 1)) if tokens > 1 else 0


def eval_batches(
    dataset: TokenDataset, sequence_length: int, micro_batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[EvalBatch]:
    """This rank's batches. Raises UserError DataTooShort where the stream holds nothing to predict."""
    total = len(dataset)
    windows = eval_windows(total, sequence_length)
    if windows == 0:
        raise UserError(
            "DataTooShort",
            f"{dataset.field}: {total} held-out token(s) leave nothing to predict; add held-out documents",
        )
    # Consecutive micro-batches go to consecutive ranks, so that only the last round is uneven.
    rounds = -(-windows // (micro_batch_size * world_size))
    for turn in range(rounds):
        first = (turn * world_size + rank) * micro_batch_size
        yield _batch(dataset, range(first, min(first + micro_batch_size, windows)), sequence_length)


def _batch(dataset: TokenDataset, windows: range, length: int) -> EvalBatch:
    shape = (max(1, len(windows)), length)
    input_ids = np.full(shape, dataset.pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    targets = 0
    for row, window in enumerate(windows):
        start = window * (length - 1)
        ids = dataset.tokens(start, min(start + length, len(dataset)))
        input_ids[row, : len(ids)] = ids
        labels[row, 1 : len(ids)] = ids[1:]
        targets += len(ids) - 1
    return EvalBatch(input_ids, labels, targets)
