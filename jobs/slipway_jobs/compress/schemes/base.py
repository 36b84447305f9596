"""What a compression scheme is: how it writes a model directory, how that is loaded, and what proves that it ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slipway_api.compression import SchemeName
from slipway_jobs.errors import UserError

EXPANDED = "weights expanded to floating point when loaded"


@dataclass(frozen=True)
class SchemeJob:
    """What a scheme works with. It fills `output` with configuration and weights; others add the tokenizer."""

    source: Path  # the model directory to compress; is not changed
    output: Path
    device: torch.device
    dtype: torch.dtype  # what the model computes in
    layers: dict[str, int]  # the linear layers to compress: name -> input width
    ignored: list[str]  # patterns (re:...) of the linear layers to leave alone: the output layer
    calibration: Tensor | None  # [samples, sequence length] int64; None: the scheme needs none
    progress: Callable[[str], None]


@dataclass(frozen=True)
class Applied:
    """What a loaded model really is: `execution` in words, `sparsity` where weights were pruned."""

    execution: str
    sparsity: float | None = None


class Scheme(Protocol):
    """One scheme. Stateless but for its settings."""

    name: SchemeName

    def write(self, job: SchemeJob) -> None:
        """Compress and save. Raises UserError SchemeUnsupported or SchemeSettingsInvalid."""
        ...

    def native(self, device: torch.device) -> bool:
        """Whether an engine on this device computes with the compressed weights. False: it would expand them."""
        ...

    def load_options(self, device: torch.device) -> dict[str, Any]:
        """Further arguments of from_pretrained."""
        ...

    def finish(self, model: nn.Module, layers: list[str], device: torch.device) -> Applied:
        """Prove that the freshly loaded model is compressed, then put kernels in place.

        Raises UserError SchemeNotApplied.
        """
        ...


def check_divisible(layers: dict[str, int], size: int, field: str) -> None:
    """Raise UserError SchemeSettingsInvalid where a layer's input width is not a multiple of `size`."""
    wrong = [f"{name} ({width})" for name, width in layers.items() if width % size]
    if wrong:
        raise UserError(
            "SchemeSettingsInvalid",
            f"{field}: {size} does not divide the input width of {len(wrong)} layers: {', '.join(wrong[:3])}; "
            "choose one that does",
        )
