"""What will run: does it fit, on which base model, with how much memory. Pure.

Whatever cannot run says so here, before anything is created.
"""

from __future__ import annotations

from slipway_api import conditions as c
from slipway_api.trainjob import TrainJobSpec
from slipway_operator.controllers.runs.observed import Observed, Plan, Settings
from slipway_operator.controllers.runs.references import trained_model
from slipway_operator.controllers.runs.status import StatusDraft
from slipway_operator.controllers.trainjob.memory import replan_after_out_of_memory
from slipway_operator.planner.cost import rate_of
from slipway_operator.planner.fit import fit


def plan_run(observed: Observed, spec: TrainJobSpec, settings: Settings, plan: Plan) -> TrainJobSpec | None:
    """The spec that will run, with references resolved; None when it cannot (yet)."""
    draft = plan.draft
    verdict = fit(spec, settings.config.pools, _base_parameters(observed, spec))
    if not verdict.fits:
        draft.set(c.PLANNED, "False", c.DOES_NOT_FIT, verdict.message)
        plan.fail(c.DOES_NOT_FIT, verdict.message)
        return None
    resolved = _resolve_base_model(observed, spec, draft, plan)
    if resolved is None:
        return None
    replanned = replan_after_out_of_memory(resolved, draft.records())
    if replanned is None:
        plan.fail(
            "OutOfMemory",
            "out of memory with micro-batches of one sequence and activation checkpointing: shorten "
            "data.sequenceLength, use more workers with a strategy that shards, or give workers more memory",
        )
        return None
    say_planned(observed, spec, replanned, settings, draft)
    return replanned


def say_planned(
    observed: Observed, spec: TrainJobSpec, runnable: TrainJobSpec, settings: Settings, draft: StatusDraft
) -> None:
    """Say in Planned that `runnable` is what becomes of `spec`, where, and for how much."""
    verdict = fit(spec, settings.config.pools, _base_parameters(observed, spec))
    message = verdict.message
    draft.put_pool(verdict.pool)
    if rate := str(rate_of(spec.workers, draft.value("pool"), settings.config)):
        message += f": {rate} at work"
    if runnable.training != spec.training:
        recompute = ", activations recomputed" if runnable.training.activation_checkpointing else ""
        message += f"; after running out of memory: microBatchSize {runnable.training.micro_batch_size}{recompute}"
    draft.set(c.PLANNED, "True", c.FITS, message)


def _base_parameters(observed: Observed, spec: TrainJobSpec) -> int | None:
    """Of the model that another TrainJob has made; None while there is none."""
    reference = spec.model.train_job
    base = trained_model("", reference.name, observed).model if reference else None
    return base.get("parameters") or None if base else None


def _resolve_base_model(observed: Observed, spec: TrainJobSpec, draft: StatusDraft, plan: Plan) -> TrainJobSpec | None:
    """Replace model.trainJob by the uri of what that job has trained."""
    reference = spec.model.train_job
    if reference is None:
        return spec
    if reference.name == observed.job["metadata"]["name"]:
        plan.fail(c.MODEL_NOT_READY, f"spec.model.trainJob: TrainJob {reference.name} is this job itself")
        return None
    found = trained_model("spec.model.trainJob", reference.name, observed)
    if found.failed:
        plan.fail(c.MODEL_NOT_READY, f"{found.message}; train a base model first and create this job again")
        return None
    if found.model is None:
        draft.set(c.PLANNED, "False", c.MODEL_NOT_READY, f"{found.message}; waiting for it")
        draft.set(c.RUNNING, "False", c.NOT_STARTED, "waiting for the base model")
        return None
    model = spec.model.model_copy(update={"train_job": None, "uri": found.model["uri"]})
    return spec.model_copy(update={"model": model})
