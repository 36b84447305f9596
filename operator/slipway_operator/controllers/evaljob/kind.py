"""What is particular to an EvalJob among runs. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from slipway_api import conditions as c
from slipway_api.evaljob import Confidence, EvalJobSpec, Gate
from slipway_api.gates import judge
from slipway_api.references import ModelReference
from slipway_api.run import EvalRunSpec, Report, RunEnd
from slipway_operator.controllers.evaljob.cross_validation import cross_validate, fold_name
from slipway_operator.controllers.runs.attempts import out_of_memory_ends
from slipway_operator.controllers.runs.kind import RunKind, RunPlace
from slipway_operator.controllers.runs.observed import Observed, Plan, Settings
from slipway_operator.controllers.runs.references import trained_model
from slipway_operator.controllers.runs.status import StatusDraft
from slipway_operator.kube.resource import EVALJOBS
from slipway_operator.planner.fit import fit_workers

FEWEST_BATCH_TOKENS = 64
DEFAULT_CONFIDENCE: Confidence = "0.95"


class EvalJobKind(RunKind[EvalJobSpec]):
    """Measures a model."""

    resource = EVALJOBS
    entrypoint = "python -m slipway_jobs.evaluate"
    kept = "what has been scored is kept"

    def child_name(self, name: str, attempt: int) -> str:
        """`<name>-e<attempt>`: a TrainJob of the same name has `<name>-<attempt>`. Attempt 0 stands for the job."""
        return f"{name}-e{attempt}" if attempt else f"{name}-e"

    def parse(self, job: dict[str, Any]) -> EvalJobSpec:
        """The spec."""
        return EvalJobSpec.model_validate(job["spec"])

    def references(self, job: dict[str, Any]) -> list[str]:
        """The TrainJobs that spec.model and spec.baseline name."""
        spec = job.get("spec", {})
        named = [(spec.get(field) or {}).get("trainJob") for field in ("model", "baseline")]
        return [reference["name"] for reference in named if reference]

    def makes(self, job: dict[str, Any]) -> list[str]:
        """Of a cross-validation, the jobs of its folds."""
        folds = (job.get("spec", {}).get("crossValidation") or {}).get("folds", 0)
        return [fold_name(job["metadata"]["name"], fold) for fold in range(folds)]

    def without_a_run(self, observed: Observed, now: datetime, plan: Plan) -> bool:
        """A cross-validation is run by the jobs of its folds."""
        spec = self.parse(observed.job)
        if spec.cross_validation is None:
            return False
        plan.draft.put("modelName", in_words(spec.model))
        cross_validate(self, observed, spec, now, plan)
        return True

    def plan(self, observed: Observed, spec: EvalJobSpec, settings: Settings, plan: Plan) -> EvalJobSpec | None:
        """Whether its workers fit, which models it measures, and in batches of which size."""
        draft = plan.draft
        draft.put("modelName", in_words(spec.model))
        draft.put("suitesSummary", f"0/{len(spec.suites)}")
        verdict = fit_workers(spec.workers, settings.config.pools)
        if not verdict.fits:
            plan.fail(c.DOES_NOT_FIT, verdict.message)
            return None
        draft.put_pool(verdict.pool)
        model = _resolve("spec.model", spec.model, observed, plan)
        baseline = _resolve("spec.baseline", spec.baseline, observed, plan) if spec.baseline else None
        if model is None or (spec.baseline and baseline is None):
            return None
        tokens = spec.batch_tokens >> out_of_memory_ends(draft.records())
        if tokens < FEWEST_BATCH_TOKENS:
            plan.fail(
                "OutOfMemory",
                f"out of memory with batches of {2 * tokens} tokens: give workers more memory, or lower a suite's "
                "windowTokens or maxNewTokens",
            )
            return None
        return spec.model_copy(update={"model": model, "baseline": baseline, "batch_tokens": tokens})

    def say_planned(self, observed: Observed, spec: EvalJobSpec, settings: Settings, draft: StatusDraft) -> None:
        """What the printer columns show, and where."""
        draft.put_pool(fit_workers(spec.workers, settings.config.pools).pool)
        draft.put("modelName", in_words(spec.model))
        draft.put("suitesSummary", f"0/{len(spec.suites)}")

    def run(self, spec: EvalJobSpec, place: RunPlace) -> EvalRunSpec:
        """What the evaluation driver is told."""
        return EvalRunSpec(
            **place.identity(),
            results=f"{place.shared}/eval",
            model=spec.model,
            baseline=spec.baseline,
            suites=spec.suites,
            data=spec.data,
            metrics=spec.metrics,
            slices=spec.slices,
            few_shot=spec.few_shot,
            confidences=confidences(spec.gate),
            gate=spec.gate,
            seed=spec.seed,
            batch_tokens=spec.batch_tokens,
            precision=spec.precision,
            workers=spec.workers,
        )

    def fold(self, report: Report, draft: StatusDraft) -> None:
        """Progress, suites, scores and the models that were found."""
        evaluation = report.evaluation
        if evaluation is None:
            return
        progress = evaluation.progress.to_wire()
        progress["summary"] = f"{evaluation.progress.done}/{evaluation.progress.total}"
        progress["updatedAt"] = report.time
        draft.put("progress", progress)
        for key, model in (("model", evaluation.model), ("baseline", evaluation.baseline)):
            if model is not None:
                draft.put(key, model.to_wire())
        if evaluation.suites:
            draft.put("suites", [suite.to_wire() for suite in evaluation.suites])
            ended = sum(suite.state in ("Succeeded", "Failed") for suite in evaluation.suites)
            draft.put("suitesSummary", f"{ended}/{len(evaluation.suites)}")
        if evaluation.metrics:
            draft.put("metrics", [metric.to_wire() for metric in evaluation.metrics])

    def result_of(self, end: RunEnd) -> dict[str, Any] | None:
        """Where the results were written."""
        return end.results.to_wire() if end.results else None

    def succeed(self, result: dict[str, Any], draft: StatusDraft) -> None:
        """It has its results; the scores came with the same report."""
        draft.put("results", result)

    def conclude(self, job: dict[str, Any], draft: StatusDraft) -> None:
        """The gates, over what is stored: also long after the end, when somebody has changed them."""
        if not draft.is_true(c.SUCCEEDED):
            failed = draft.is_true(c.FAILED)
            message = "the job has failed: nothing can pass" if failed else "the job has not finished"
            draft.set(c.PASSED, "False" if failed else "Unknown", c.NOT_EVALUATED, message)
            return
        spec = self.parse(job)
        verdict = judge(spec.gate, draft.value("metrics") or [], draft.value("suites") or [])
        draft.put("gates", [result.to_wire() for result in verdict.results])
        draft.set(c.PASSED, verdict.status, verdict.reason, verdict.message)


def confidences(gates: list[Gate]) -> list[Confidence]:
    """The confidences that intervals are wanted at: the usual one, and whatever gates ask for."""
    asked = {DEFAULT_CONFIDENCE, *(gate.confidence for gate in gates if gate.confidence)}
    return cast("list[Confidence]", sorted(asked))


def in_words(model: ModelReference) -> str:
    """A model for the printer column."""
    if model.train_job is not None:
        return f"tj/{model.train_job.name}"
    if model.hub is not None:
        return f"{model.hub.repo}@{model.hub.revision}"
    assert model.uri is not None
    return model.uri if len(model.uri) <= 40 else f"...{model.uri[-37:]}"


def _resolve(field: str, model: ModelReference, observed: Observed, plan: Plan) -> ModelReference | None:
    if model.train_job is None:
        return model
    found = trained_model(f"{field}.trainJob", model.train_job.name, observed)
    if found.model is not None:
        return ModelReference(uri=found.model["uri"])
    if found.failed:
        plan.fail(c.MODEL_NOT_READY, f"{found.message}; name another model, or train it again and create this job anew")
    else:
        plan.draft.set(c.RUNNING, "False", c.MODEL_NOT_READY, f"{found.message}; waiting for it")
    return None
