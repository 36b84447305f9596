"""The registry: one line for each scheme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slipway_api import compression as api
from slipway_api.base import ApiModel
from slipway_api.compression import SchemeName
from slipway_jobs.compress.schemes.awq import AwqScheme
from slipway_jobs.compress.schemes.base import Scheme
from slipway_jobs.compress.schemes.bnb_int8 import BnbInt8Scheme
from slipway_jobs.compress.schemes.fp8 import Fp8Scheme
from slipway_jobs.compress.schemes.gptq import GptqScheme
from slipway_jobs.compress.schemes.int8_dynamic import Int8DynamicScheme
from slipway_jobs.compress.schemes.int8_weight_only import Int8WeightOnlyScheme
from slipway_jobs.compress.schemes.magnitude import MagnitudeScheme
from slipway_jobs.compress.schemes.nf4 import Nf4Scheme
from slipway_jobs.compress.schemes.smooth_quant import SmoothQuantScheme
from slipway_jobs.compress.schemes.sparse_gpt import SparseGptScheme
from slipway_jobs.compress.schemes.wanda import WandaScheme

REGISTRY: dict[SchemeName, tuple[type[ApiModel], Callable[[Any], Scheme]]] = {
    "int8Dynamic": (api.Int8Dynamic, Int8DynamicScheme),
    "int8WeightOnly": (api.Int8WeightOnly, Int8WeightOnlyScheme),
    "nf4": (api.Nf4, Nf4Scheme),
    "bnbInt8": (api.BnbInt8, BnbInt8Scheme),
    "gptq": (api.Gptq, GptqScheme),
    "awq": (api.Awq, AwqScheme),
    "smoothQuant": (api.SmoothQuant, SmoothQuantScheme),
    "fp8": (api.Fp8, Fp8Scheme),
    "sparseGpt": (api.SparseGpt, SparseGptScheme),
    "wanda": (api.Wanda, WandaScheme),
    "magnitude": (api.Magnitude, MagnitudeScheme),
}


def scheme_of(name: SchemeName, settings: dict[str, Any]) -> Scheme:
    """The scheme with these settings, as they stand in a manifest or in slipway.json."""
    model, make = REGISTRY[name]
    return make(model.model_validate(settings))
