"""magnitude: the smallest weights of each layer become zero. The baseline that the others are compared with.

Our own few lines: llm-compressor's modifier is a training-time schedule and does nothing in a one-shot run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slipway_api.compression import SchemeName
from slipway_jobs.compress.dense import load_dense
from slipway_jobs.compress.schemes.base import SchemeJob
from slipway_jobs.compress.schemes.pruning import PruningScheme


class MagnitudeScheme(PruningScheme):
    """Pruning by weight."""

    name: SchemeName = "magnitude"

    def write(self, job: SchemeJob) -> None:
        """Prune and save."""
        self.check(job)
        lm = load_dense(job.source, str(job.source), job.device)
        with torch.no_grad():
            for name in job.layers:
                weight = lm.get_submodule(name).weight
                weight.mul_(kept(weight, self.sparsity, self.settings.pattern))
        lm.save_pretrained(job.output)


def kept(weight: Tensor, sparsity: float, pattern: str) -> Tensor:
    """Which weights of a layer [out, in] stay: its largest, or the largest of each group of m in a row."""
    magnitude = weight.abs().float()
    if pattern == "unstructured":
        removed = magnitude.flatten().argsort(stable=True)[: round(sparsity * weight.numel())]
        mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[removed] = False
        return mask.reshape(weight.shape)
    n, m = (int(part) for part in pattern.split(":"))
    groups = magnitude.reshape(-1, m)
    removed = groups.argsort(dim=-1, stable=True)[:, :n]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(1, removed, False).reshape(weight.shape)
