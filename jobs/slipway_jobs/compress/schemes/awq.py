"""awq: 4-bit weights in groups, channels with large activations scaled up before rounding (arXiv:2306.00978)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipway_api.compression import Awq, SchemeName
from slipway_jobs.compress.layers import PACKED_INT4, require_storage
from slipway_jobs.compress.schemes.base import EXPANDED, Applied, SchemeJob, check_divisible
from slipway_jobs.compress.schemes.gptq import weight_groups
from slipway_jobs.compress.schemes.oneshot import calibrate_and_save


class AwqScheme:
    """W4A16, with a zero point for each group."""

    name: SchemeName = "awq"

    def __init__(self, settings: Awq) -> None:
        self.settings = settings

    def write(self, job: SchemeJob) -> None:
        """Search the scales, quantize and save packed."""
        from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: PLC0415
        from llmcompressor.modifiers.transform.awq import AWQModifier  # noqa: PLC0415

        check_divisible(job.layers, self.settings.group_size, "compression.awq.groupSize")
        groups = weight_groups(self.settings.group_size, symmetric=False)
        calibrate_and_save(job, [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=job.ignored)])

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
