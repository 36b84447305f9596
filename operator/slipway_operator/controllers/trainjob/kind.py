"""What is particular to a TrainJob among runs. Pure."""

from __future__ import annotations

from typing import Any

from slipway_api.run import Report, RunEnd, RunSpec
from slipway_api.trainjob import TrainJobSpec
from slipway_operator.controllers.runs.kind import RunKind, RunPlace
from slipway_operator.controllers.runs.observed import Observed, Plan, Settings
from slipway_operator.controllers.runs.status import StatusDraft
from slipway_operator.controllers.trainjob.memory import replan_after_out_of_memory
from slipway_operator.controllers.trainjob.planning import plan_run, say_planned
from slipway_operator.kube.resource import TRAINJOBS


class TrainJobKind(RunKind[TrainJobSpec]):
    """Trains a model."""

    resource = TRAINJOBS
    entrypoint = "python -m slipway_jobs.train"
    kept = "the last checkpoint is kept"

    def child_name(self, name: str, attempt: int) -> str:
        """`<name>-<attempt>`; attempt 0, which never runs, stands for the job itself."""
        return f"{name}-{attempt}" if attempt else name

    def parse(self, job: dict[str, Any]) -> TrainJobSpec:
        """The spec."""
        return TrainJobSpec.model_validate(job["spec"])

    def references(self, job: dict[str, Any]) -> list[str]:
        """The TrainJob that spec.model.trainJob names."""
        reference = job.get("spec", {}).get("model", {}).get("trainJob")
        return [reference["name"]] if reference else []

    def plan(self, observed: Observed, spec: TrainJobSpec, settings: Settings, plan: Plan) -> TrainJobSpec | None:
        """Whether it fits, on which base model, with how much memory."""
        return plan_run(observed, spec, settings, plan)

    def say_planned(self, observed: Observed, spec: TrainJobSpec, settings: Settings, draft: StatusDraft) -> None:
        """Planned, for an attempt that was found."""
        say_planned(observed, spec, replan_after_out_of_memory(spec, draft.records()) or spec, settings, draft)

    def run(self, spec: TrainJobSpec, place: RunPlace) -> RunSpec:
        """What the training driver is told."""
        return RunSpec(
            **place.identity(),
            model=spec.model,
            tokenizer=spec.tokenizer,
            data=spec.data,
            training=spec.training,
            strategy=spec.strategy,
            workers=spec.workers,
            checkpoint=spec.checkpoint,
        )

    def fold(self, report: Report, draft: StatusDraft) -> None:
        """Plan, progress and checkpoints."""
        if report.plan is not None:
            draft.put("plan", report.plan.to_wire())
        if report.progress is not None:
            progress = report.progress.to_wire()
            progress["summary"] = f"{report.progress.step}/{report.progress.steps}"
            progress["updatedAt"] = report.time
            draft.put("progress", progress)
        if report.checkpoint is not None:
            draft.put("checkpoint", report.checkpoint.to_wire())
        if report.skipped_checkpoints:
            draft.put("skippedCheckpoints", [s.to_wire() for s in report.skipped_checkpoints][:20])

    def result_of(self, end: RunEnd) -> dict[str, Any] | None:
        """The trained model."""
        return end.model.to_wire() if end.model else None

    def succeed(self, result: dict[str, Any], draft: StatusDraft) -> None:
        """It has its model."""
        draft.put("model", result)

    def conclude(self, job: dict[str, Any], draft: StatusDraft) -> None:
        """Nothing more to say."""
