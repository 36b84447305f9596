"""Which sequence comes when: a pure function of (seed, position), whatever the world size and the restarts.

Every epoch is one permutation of all sequences. Position g of the endless stream of samples is place g mod n in the
permutation of epoch g div n; optimizer step k takes the positions from k x globalBatchSize on, and a batch may cross
into the next epoch. Nothing is carried from step to step, so there is nothing to save in a checkpoint.

A permutation sorts the raw output of Philox (Salmon et al., SC'11), keyed by (seed, epoch). NumPy promises
that a bit generator's raw stream never changes between versions (NEP 19), which it does not promise for
Generator.permutation.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@lru_cache(maxsize=2)  # a batch touches two epochs at most
def epoch_permutation(seed: int, epoch: int, n_sequences: int) -> npt.NDArray[np.uint32] | Indices:
    """The order of one epoch, [n_sequences], read-only. Four bytes per sequence below 2**32 of them."""
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(n_sequences)
    order = np.argsort(keys, kind="stable")
    narrow: npt.NDArray[np.uint32] | Indices = order.astype(np.uint32) if n_sequences <= 1 << 32 else order
    narrow.flags.writeable = False
    return narrow


def samples(seed: int, start: int, stop: int, n_sequences: int) -> Indices:
    """Sequence numbers at the positions [start, stop) of the stream, int64."""
    if n_sequences < 1:
        raise ValueError("there must be at least one sequence")
    if not 0 <= start <= stop:
        raise ValueError(f"not a range of positions: [{start}, {stop})")
    parts: list[Indices] = []
    position = start
    while position < stop:
        epoch, offset = divmod(position, n_sequences)
        part = epoch_permutation(seed, epoch, n_sequences)[offset : offset + stop - position]
        parts.append(part.astype(np.int64))
        position += len(part)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def sample_index(seed: int, global_sample_index: int, n_sequences: int) -> int:
    """The sequence at one position of the stream."""
    return int(samples(seed, global_sample_index, global_sample_index + 1, n_sequences)[0])


def global_batch(seed: int, step: int, global_batch_size: int, n_sequences: int) -> Indices:
    """The sequences of optimizer step `step` (from 0), over all ranks, [global_batch_size] int64."""
    return samples(seed, step * global_batch_size, (step + 1) * global_batch_size, n_sequences)


def rank_slice(indices: Indices, rank: int, world_size: int) -> Indices:
    """The consecutive part of a global batch that is one rank's. Put together in rank order they are the batch."""
    share, rest = divmod(len(indices), world_size)
    if rest:
        raise ValueError(f"a global batch of {len(indices)} cannot be split evenly over {world_size} ranks")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    return indices[rank * share : (rank + 1) * share]


def micro_batches(indices: Indices, micro_batch_size: int) -> Iterator[Indices]:
    """A rank's part in consecutive micro-batches."""
    if len(indices) % micro_batch_size:
        raise ValueError(f"{len(indices)} sequences are no whole number of micro-batches of {micro_batch_size}")
    for start in range(0, len(indices), micro_batch_size):
        yield indices[start : start + micro_batch_size]


def steps_of_epochs(epochs: int, global_batch_size: int, n_sequences: int) -> int:
    """Optimizer steps after which every sequence was used at least `epochs` times; the last may begin another."""
    return -(-epochs * n_sequences // global_batch_size)
