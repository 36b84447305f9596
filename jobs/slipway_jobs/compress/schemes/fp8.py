"""fp8: 8-bit float weights (E4M3) per output channel, activations rounded per token (arXiv:2209.05433).

A GPU of compute capability 8.9 or more multiplies in fp8. Not run here: this path needs such a GPU. Elsewhere
compressed-tensors expands the weights at the first call and rounds the activations, so the numbers are the scheme's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipway_api.compression import Fp8, SchemeName
from slipway_jobs.compress.layers import FP8, require_storage
from slipway_jobs.compress.schemes.base import EXPANDED, Applied, SchemeJob
from slipway_jobs.compress.schemes.oneshot import calibrate_and_save


class Fp8Scheme:
    """W8A8 in floating point, dynamic."""

    name: SchemeName = "fp8"

    def __init__(self, settings: Fp8) -> None:
        self.settings = settings

    def write(self, job: SchemeJob) -> None:
        """Quantize and save. No data is needed: scales are taken from the weights."""
        from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: PLC0415

        calibrate_and_save(job, [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=job.ignored)])

    def native(self, device: torch.device) -> bool:
        """On GPUs that multiply in fp8."""
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)

    def load_options(self, device: torch.device) -> dict[str, Any]:
        """Keep the weights in fp8 where they can be multiplied."""
        if not self.native(device):
            return {}
        from transformers import CompressedTensorsConfig  # noqa: PLC0415

        return {"quantization_config": CompressedTensorsConfig(use_optimized_inference=True)}

    def finish(self, model: nn.Module, layers: list[str], device: torch.device) -> Applied:
        """Verify the 8-bit weights, before the first call may expand them."""
        require_storage(model, layers, FP8)
        return Applied("fp8, activations per token" if self.native(device) else EXPANDED)
