"""int8WeightOnly: torchao's 8-bit weights per output channel; activations stay in floating point."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipway_api.compression import Int8WeightOnly, SchemeName
from slipway_jobs.compress.layers import TORCHAO_INT8, require_storage
from slipway_jobs.compress.quiet import quiet_libraries
from slipway_jobs.compress.schemes.base import Applied, SchemeJob
from slipway_jobs.compress.schemes.library import quantize_at_load


class Int8WeightOnlyScheme:
    """Weights in 8 bits."""

    name: SchemeName = "int8WeightOnly"

    def __init__(self, settings: Int8WeightOnly) -> None:
        self.settings = settings

    def write(self, job: SchemeJob) -> None:
        """Quantize and save in torchao's format."""
        with quiet_libraries():
            from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415
            from transformers import TorchAoConfig  # noqa: PLC0415

        quantize_at_load(job, TorchAoConfig(Int8WeightOnlyConfig()))

    def native(self, device: torch.device) -> bool:
        """Everywhere."""
        return True

    def load_options(self, device: torch.device) -> dict[str, Any]:
        """None."""
        return {}

    def finish(self, model: nn.Module, layers: list[str], device: torch.device) -> Applied:
        """Verify torchao's weights."""
        require_storage(model, layers, TORCHAO_INT8)
        return Applied("torchao int8 weights")
