"""What the pruning schemes have in common: zeros in dense weights, and the proof that they are there.

The files and the memory are as large as before and the kernels as fast: zeros are not stored apart. What pruning buys
needs an engine with sparse kernels, and none that we serve with has them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipway_api.compression import Sparsity
from slipway_jobs.compress.layers import require_sparsity
from slipway_jobs.compress.schemes.base import Applied, SchemeJob, check_divisible

DENSE_KERNELS = "dense kernels, zeros are multiplied as any weight"


class PruningScheme:
    """The parts that do not depend on how weights are chosen."""

    def __init__(self, settings: Sparsity) -> None:
        self.settings = settings
        self.sparsity = float(settings.sparsity)

    @property
    def mask_structure(self) -> str:
        """n:m, or 0:0 for anywhere, as llm-compressor spells it."""
        return "0:0" if self.settings.pattern == "unstructured" else self.settings.pattern

    def check(self, job: SchemeJob) -> None:
        """Raise UserError SchemeSettingsInvalid where the pattern does not fit a layer's width."""
        if self.settings.pattern != "unstructured":
            width = int(self.settings.pattern.split(":")[1])
            check_divisible(job.layers, width, "compression: the pattern's width")

    def native(self, device: torch.device) -> bool:
        """A pruned model is a dense model."""
        return True

    def load_options(self, device: torch.device) -> dict[str, Any]:
        """None."""
        return {}

    def finish(self, model: nn.Module, layers: list[str], device: torch.device) -> Applied:
        """Count the zeros."""
        return Applied(DENSE_KERNELS, require_sparsity(model, layers, self.sparsity, self.settings.pattern))
