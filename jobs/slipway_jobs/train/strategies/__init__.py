"""The strategies by name. A new one is a file here, one line below, and a test.

Modules are imported when asked for: deepspeed costs seconds that an fsdp run need not spend.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from slipway_api.trainjob import Strategy as StrategySpec
from slipway_jobs.train.strategies.base import Strategy, StrategyConfig

__all__ = ["Strategy", "StrategyConfig", "make_strategy", "preload_strategy"]

_STRATEGIES = {
    "ddp": "slipway_jobs.train.strategies.ddp:DDPStrategy",
    "fsdp": "slipway_jobs.train.strategies.fsdp:FSDPStrategy",
    "deepspeed": "slipway_jobs.train.strategies.deepspeed:DeepSpeedStrategy",
}


def make_strategy(config: StrategyConfig) -> Strategy:
    """The strategy that the manifest asks for."""
    return cast(Strategy, _class_of(config.spec)(config))


def preload_strategy(spec: StrategySpec) -> None:
    """Import it, so that `make_strategy` need not."""
    _class_of(spec)


def _class_of(spec: StrategySpec) -> type:
    module, _, name = _STRATEGIES[spec.name].partition(":")
    return cast(type, getattr(import_module(module), name))
