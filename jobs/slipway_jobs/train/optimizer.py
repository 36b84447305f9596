"""AdamW as every strategy uses it, and its state under names that do not depend on how the model is sharded.

It never decides a learning rate (schedule.py) and never clips (the strategy does, since it knows how gradients lie).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slipway_api.trainjob import Optimizer

# What AdamW keeps per parameter, in a tensor of the parameter's own shape and sharding.
MOMENTS = ("exp_avg", "exp_avg_sq")


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay, norms and biases do not: shrinking a gain or an offset towards zero regularizes nothing."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in named:
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(named: Iterable[tuple[str, nn.Parameter]], config: Optimizer) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over the model's parameters; fused: one pass over memory instead of ten."""
    return torch.optim.AdamW(
        parameter_groups(named, float(config.weight_decay)),
        lr=float(config.learning_rate),
        betas=(float(config.beta1), float(config.beta2)),
        eps=float(config.epsilon),
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def materialise_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the state that AdamW creates in its first step, so that a checkpoint can be loaded into it in place."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:
                # A fused step counts on the parameter's device, as torch.optim.adam does it.
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                for moment in MOMENTS:
                    state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def named_state(named: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by `<parameter>/<what>`: live tensors, not copies."""
    return {
        f"{name}/{key}": value for name, parameter in named for key, value in optimizer.state.get(parameter, {}).items()
    }
