"""nf4: bitsandbytes' 4-bit NormalFloat weights in blocks of 64, one scale each (arXiv:2305.14314).

It runs on any CPU, but its fast kernel needs AVX-512 with bfloat16: elsewhere each call expands a layer's weights, and
decoding is slower than in fp32 (benchmarks/compression.py prints by how much).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipway_api.compression import Nf4, SchemeName
from slipway_jobs.compress.layers import NF4, require_storage
from slipway_jobs.compress.schemes.base import Applied, SchemeJob
from slipway_jobs.compress.schemes.library import quantize_at_load


class Nf4Scheme:
    """Weights in 4 bits."""

    name: SchemeName = "nf4"

    def __init__(self, settings: Nf4) -> None:
        self.settings = settings

    def write(self, job: SchemeJob) -> None:
        """Quantize and save in bitsandbytes' format."""
        from transformers import BitsAndBytesConfig  # noqa: PLC0415

        quantize_at_load(
            job,
            BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=self.settings.double_quantization,
                bnb_4bit_compute_dtype=job.dtype,
            ),
        )

    def native(self, device: torch.device) -> bool:
        """Everywhere."""
        return True

    def load_options(self, device: torch.device) -> dict[str, Any]:
        """None."""
        return {}

    def finish(self, model: nn.Module, layers: list[str], device: torch.device) -> Applied:
        """Verify the packed weights."""
        require_storage(model, layers, NF4)
        return Applied("bitsandbytes nf4")
