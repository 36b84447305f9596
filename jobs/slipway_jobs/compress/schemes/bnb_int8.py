"""bnbInt8: LLM.int8() of bitsandbytes (arXiv:2208.07339)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipway_api.compression import BnbInt8, SchemeName
from slipway_jobs.compress.layers import BNB_INT8, require_storage
from slipway_jobs.compress.schemes.base import Applied, SchemeJob
from slipway_jobs.compress.schemes.library import quantize_at_load


class BnbInt8Scheme:
    """Weights and activations in 8 bits, outlier features in 16."""

    name: SchemeName = "bnbInt8"

    def __init__(self, settings: BnbInt8) -> None:
        self.settings = settings

    def write(self, job: SchemeJob) -> None:
        """Quantize and save in bitsandbytes' format."""
        from transformers import BitsAndBytesConfig  # noqa: PLC0415

        quantize_at_load(job, BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=float(self.settings.threshold)))

    def native(self, device: torch.device) -> bool:
        """Everywhere."""
        return True

    def load_options(self, device: torch.device) -> dict[str, Any]:
        """None."""
        return {}

    def finish(self, model: nn.Module, layers: list[str], device: torch.device) -> Applied:
        """Verify the 8-bit weights."""
        require_storage(model, layers, BNB_INT8)
        return Applied("bitsandbytes int8")
