"""What a TrainJob does with less memory after an attempt ran out of it. Pure."""

from __future__ import annotations

from typing import Any

from slipway_api.trainjob import TrainJobSpec
from slipway_operator.controllers.runs.attempts import out_of_memory_ends


def replan_after_out_of_memory(spec: TrainJobSpec, records: list[dict[str, Any]]) -> TrainJobSpec | None:
    """The spec with a smaller memory need for each out-of-memory end so far; None when nothing is left to shrink.

    Halves the micro-batch (accumulation grows, so the result stays the same), then recomputes activations.
    """
    training = spec.training
    for _ in range(out_of_memory_ends(records)):
        smaller = _next_smaller_micro_batch(training.global_batch_size, training.micro_batch_size, spec.workers.count)
        if smaller is not None:
            training = training.model_copy(update={"micro_batch_size": smaller})
        elif not training.activation_checkpointing:
            training = training.model_copy(update={"activation_checkpointing": True})
        else:
            return None
    return spec.model_copy(update={"training": training})


def _next_smaller_micro_batch(global_batch: int, micro_batch: int, workers: int) -> int | None:
    return next((m for m in range(micro_batch // 2, 0, -1) if global_batch % (m * workers) == 0), None)
