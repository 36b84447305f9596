"""gptq: 4-bit weights in groups, the error of each column compensated in those that follow (arXiv:2210.17323)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipway_api.compression import Gptq, SchemeName
from slipway_jobs.compress.layers import PACKED_INT4, require_storage
from slipway_jobs.compress.schemes.base import EXPANDED, Applied, SchemeJob, check_divisible
from slipway_jobs.compress.schemes.oneshot import calibrate_and_save


class GptqScheme:
    """W4A16, symmetric."""

    name: SchemeName = "gptq"

    def __init__(self, settings: Gptq) -> None:
        self.settings = settings

    def write(self, job: SchemeJob) -> None:
        """Calibrate, quantize and save packed."""
        from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: PLC0415

        check_divisible(job.layers, self.settings.group_size, "compression.gptq.groupSize")
        groups = weight_groups(self.settings.group_size, symmetric=True)
        calibrate_and_save(job, [GPTQModifier(config_groups=groups, ignore=job.ignored)])

    def native(self, device: torch.device) -> bool:
        """Nowhere in transformers: compressed-tensors expands the weights at the first call."""
        return False

    def load_options(self, device: torch.device) -> dict[str, Any]:
        """None."""
        return {}

    def finish(self, model: nn.Module, layers: list[str], device: torch.device) -> Applied:
        """Verify the packed weights, before the first call expands them."""
        require_storage(model, layers, PACKED_INT4)
        return Applied(EXPANDED)


def weight_groups(group_size: int, *, symmetric: bool) -> dict[str, Any]:
    """4-bit integer weights with one scale for each group of a row."""
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group_size}
    return {"group_0": {"targets": ["Linear"], "weights": weights}}
