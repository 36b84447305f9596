"""smoothQuant: 8-bit weights and activations, outliers moved from the activations into the weights (arXiv:2211.10438).

The weights are rounded by GPTQ, as llm-compressor's own W8A8 recipe does. On an x86 CPU the integer kernel of
int8Dynamic runs them; elsewhere compressed-tensors expands the weights at the first call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipway_api.compression import SchemeName, SmoothQuant
from slipway_jobs.compress.kernels import int8_linear
from slipway_jobs.compress.layers import INT8, KERNEL_INT8, require_storage
from slipway_jobs.compress.schemes.base import EXPANDED, Applied, SchemeJob
from slipway_jobs.compress.schemes.oneshot import calibrate_and_save


class SmoothQuantScheme:
    """W8A8."""

    name: SchemeName = "smoothQuant"

    def __init__(self, settings: SmoothQuant) -> None:
        self.settings = settings

    def write(self, job: SchemeJob) -> None:
        """Smooth, quantize and save."""
        from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: PLC0415
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier  # noqa: PLC0415

        smooth = SmoothQuantModifier(smoothing_strength=float(self.settings.strength))
        calibrate_and_save(job, [smooth, GPTQModifier(targets="Linear", scheme="W8A8", ignore=job.ignored)])

    def native(self, device: torch.device) -> bool:
        """Where the integer kernel runs."""
        return int8_linear.available(device)

    def load_options(self, device: torch.device) -> dict[str, Any]:
        """None."""
        return {}

    def finish(self, model: nn.Module, layers: list[str], device: torch.device) -> Applied:
        """Verify the 8-bit weights, and hand them to the kernel where there is one."""
        require_storage(model, layers, INT8)
        if not int8_linear.available(device):
            return Applied(EXPANDED)
        linears: dict[str, Any] = {name: model.get_submodule(name) for name in layers}
        int8_linear.install(
            model,
            {
                name: int8_linear.Quantized(linear.weight.data, linear.weight_scale.data, linear.bias)
                for name, linear in linears.items()
            },
        )
        require_storage(model, layers, KERNEL_INT8)
        return Applied(int8_linear.NAME)
