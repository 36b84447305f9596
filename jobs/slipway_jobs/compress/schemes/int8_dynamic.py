"""int8Dynamic: torchao's 8-bit weights per output channel, activations rounded per token as they come.

The files are torchao's, so that other engines read them. On an x86 CPU our own layer computes with the same weights
(kernels/int8_linear.py, and why); elsewhere torchao's kernels do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipway_api.compression import Int8Dynamic, SchemeName
from slipway_jobs.compress.kernels import int8_linear
from slipway_jobs.compress.layers import KERNEL_INT8, TORCHAO_INT8, require_storage
from slipway_jobs.compress.quiet import quiet_libraries
from slipway_jobs.compress.schemes.base import Applied, SchemeJob
from slipway_jobs.compress.schemes.library import quantize_at_load


class Int8DynamicScheme:
    """Weights and activations in 8 bits."""

    name: SchemeName = "int8Dynamic"

    def __init__(self, settings: Int8Dynamic) -> None:
        self.settings = settings

    def write(self, job: SchemeJob) -> None:
        """Quantize and save in torchao's format."""
        with quiet_libraries():
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig  # noqa: PLC0415
            from transformers import TorchAoConfig  # noqa: PLC0415

        quantize_at_load(job, TorchAoConfig(Int8DynamicActivationInt8WeightConfig()))

    def native(self, device: torch.device) -> bool:
        """Everywhere."""
        return True

    def load_options(self, device: torch.device) -> dict[str, Any]:
        """None."""
        return {}

    def finish(self, model: nn.Module, layers: list[str], device: torch.device) -> Applied:
        """Verify torchao's weights, and hand them to the kernel where there is one."""
        require_storage(model, layers, TORCHAO_INT8)
        if not int8_linear.available(device):
            return Applied("torchao int8, activations per token")
        linears: dict[str, Any] = {name: model.get_submodule(name) for name in layers}
        int8_linear.install(
            model,
            {
                name: int8_linear.Quantized(linear.weight.qdata, linear.weight.scale, linear.bias)
                for name, linear in linears.items()
            },
        )
        require_storage(model, layers, KERNEL_INT8)
        return Applied(int8_linear.NAME)
