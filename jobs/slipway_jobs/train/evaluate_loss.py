"""The held-out loss: every held-out token predicted once, weighted by token over all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist

from slipway_jobs.data import TokenDataset, eval_batches
from slipway_jobs.train.ranks import RankContext
from slipway_jobs.train.strategies.base import Strategy


@dataclass(frozen=True)
class HeldOut:
    """What was measured. `loss` is in nats per token."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def held_out_loss(
    strategy: Strategy, dataset: TokenDataset, context: RankContext, *, sequence_length: int, micro_batch_size: int
) -> HeldOut:
    """Measure it. Collective: all ranks get the same number of batches, and the same answer."""
    total = torch.zeros(2, dtype=torch.float64, device=context.device)
    with strategy.evaluation():
        for batch in eval_batches(dataset, sequence_length, micro_batch_size, context.rank, context.world_size):
            input_ids = torch.from_numpy(batch.input_ids).to(context.device, non_blocking=True)
            labels = torch.from_numpy(batch.labels).to(context.device, non_blocking=True)
            total[0] += strategy.loss_model(input_ids, labels).detach()
            total[1] += batch.targets
    dist.all_reduce(total)
    loss, tokens = total.tolist()
    return HeldOut(loss=loss / tokens, tokens=int(tokens))
