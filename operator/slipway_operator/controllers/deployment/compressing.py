"""Compression between the gate and the rollout: a version that is to be compressed waits for its weights. Pure.

    gate passed -> Compressor.compress(version) -> the version with its result -> candidate, as any other
                        |
                        +-> nothing yet: it runs, or it is tried again after a pause
                        +-> nothing ever: it failed, or lost too much; the version is rejected, the stable one goes on

Each look at a Deployment either asks for a compression or does not, and `finish` stops what was not asked for: a gate
that was lost, a spec that changed, a Deployment that is suspended. One that has ended is remembered in
status.compression by its key, and is not run again for the same. Whether the same weights have been made before,
for an earlier version or another Deployment, is the run's to find out: it looks into the namespace's cache by digest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slipway_api import conditions as c
from slipway_api.compression import Compression, CompressionResult
from slipway_api.deployment import DeploymentSpec, ServedVersion
from slipway_operator import kuberay
from slipway_operator.controllers.deployment.compression_run import LABEL_KEY, CompressionKind, CompressionRun, run_of
from slipway_operator.controllers.deployment.observed import Observed, Plan
from slipway_operator.controllers.deployment.status import Draft
from slipway_operator.controllers.runs import decide as runs
from slipway_operator.controllers.runs.observed import Observed as RunObserved
from slipway_operator.controllers.runs.observed import Settings

FAILURES = frozenset({c.COMPRESSION_FAILED, c.QUALITY_LOSS_TOO_HIGH})
"""Reasons of a rejection that a changed spec.compression makes void."""


class Compressor:
    """The compression of one look at a Deployment."""

    def __init__(self, observed: Observed, settings: Settings, draft: Draft, plan: Plan) -> None:
        self._observed = observed
        self._settings = settings
        self._draft = draft
        self._plan = plan
        self._asked = False

    def compress(self, version: ServedVersion, spec: DeploymentSpec, compression: Compression) -> ServedVersion | None:
        """The version with its compressed weights; None while there are none, and then the draft says why."""
        self._asked = True
        wanted = run_of(version, spec, compression)
        status = self._draft.value("compression")
        if status is None or status["key"] != wanted.key:
            number = (status or {}).get("attempt", 0)
            status = {"version": version.version, "key": wanted.key, "scheme": wanted.scheme}
            status |= {"gpus": wanted.workers.resources.gpu} | ({"attempt": number} if number else {})
        ended = _ended(status)
        after = self._look(wanted, status)
        if c.is_true(after["conditions"], c.SUCCEEDED):
            return self._succeeded(version, CompressionResult.model_validate(after["result"]), told=ended)
        if c.is_true(after["conditions"], c.FAILED):
            self._failed(version, after, told=ended)
        else:
            self._goes_on(version, after)
        return None

    def finish(self, *, compressed: bool) -> None:
        """Stop what this look has not asked for. `compressed`: spec.compression is set."""
        if self._asked:
            return
        status = self._draft.value("compression")
        after = self._look(None, status) if status or self._ray_jobs() else None
        shown = self._draft.candidate or self._draft.stable
        if shown is not None and shown.compression is not None:
            message = f"version {shown.version}: {in_words(shown.compression)}"
            self._draft.set(c.COMPRESSED, "True", c.MODEL_COMPRESSED, message)
        elif compressed and after is not None and not _ended(after):
            message = "not running: see GatePassed and Progressing for what is waited for"
            self._draft.set(c.COMPRESSED, "False", c.COMPRESSION_STOPPED, message)
        elif not compressed:
            self._draft.drop(c.COMPRESSED)

    # --- the run --------------------------------------------------------------------------------------------------

    def _ray_jobs(self) -> list[dict[str, Any]]:
        return list(self._observed.runs.ray_jobs) if self._observed.runs is not None else []

    def _look(self, wanted: CompressionRun | None, status: dict[str, Any] | None) -> dict[str, Any]:
        """One look at the run with the ladder of all runs; its status afterwards."""
        stored = (self._observed.deployment.get("status") or {}).get("compression") or {}
        key = wanted.key if wanted else (status or {}).get("key")
        self._discard(key, status)
        if status is None:
            return {}
        deployment = self._observed.deployment
        job = {
            "kind": deployment["kind"],
            "metadata": deployment["metadata"],
            "spec": {name: deployment["spec"][name] for name in ("priorityClassName",) if name in deployment["spec"]},
            "status": status,
        }
        observed = self._observed.runs or RunObserved(job=job, ray_jobs=())
        decision = runs.decide(CompressionKind(wanted), replace(observed, job=job), self._settings, self._draft.time)
        plan = self._plan
        plan.apply_last += decision.apply
        plan.delete += decision.delete
        if decision.requeue_after is not None:
            plan.requeue(decision.requeue_after)
        newly = _ended(decision.status) and not _ended(status)
        for event in decision.events:
            if not newly or event.reason.startswith("Attempt"):  # the end is told in our own words
                plan.note(event.type, event.reason, event.message)
        # Only what the stored status holds may be acknowledged; of an earlier run that was given up, everything is.
        plan.ended_attempt = decision.ended_attempt if stored.get("key") == key else stored.get("attempt")
        self._draft.put("compression", decision.status)
        return decision.status

    def _discard(self, key: str | None, status: dict[str, Any] | None) -> None:
        """Delete RayJobs of other compressions, and see to it that their numbers are not given again."""
        known = {record["number"] for record in (status or {}).get("attempts", [])}
        for ray_job in self._ray_jobs():
            labels = ray_job["metadata"]["labels"]
            number = int(labels.get(kuberay.LABEL_ATTEMPT, "0"))
            last = (status or {}).get("attempt", 0)
            if labels.get(LABEL_KEY) == key and (number in known or number > last):
                continue
            if status is not None and number > last:
                status["attempt"] = number
                status.pop("attempts", None)
            if not ray_job["metadata"].get("deletionTimestamp"):
                name = ray_job["metadata"]["name"]
                secret = kuberay.token_secret(self._observed.deployment, name, number, token="")
                self._plan.delete += [secret, ray_job]

    # --- what came of it ------------------------------------------------------------------------------------------

    def _goes_on(self, version: ServedVersion, status: dict[str, Any]) -> None:
        running = c.find_condition(status["conditions"], c.RUNNING) or {}
        attempt = f"attempt {status['attempt']}: " if status.get("attempts") else ""
        message = (
            f"version {version.version} ({version.source}) is being compressed: {attempt}{running.get('reason')}: "
            f"{running.get('message')}"
        )
        before = self._draft.condition(c.COMPRESSED)
        if before is None or before["reason"] != c.COMPRESSING:
            self._plan.note("Normal", c.COMPRESSING, f"version {version.version} ({version.source})")
        self._draft.set(c.COMPRESSED, "False", c.COMPRESSING, message)
        self._draft.set(c.PROGRESSING, "True", c.COMPRESSING, message)

    def _succeeded(self, version: ServedVersion, result: CompressionResult, *, told: bool) -> ServedVersion:
        message = f"version {version.version}: {in_words(result)}"
        if not told:
            self._plan.note("Normal", c.MODEL_COMPRESSED, message)
        self._draft.set(c.COMPRESSED, "True", c.MODEL_COMPRESSED, message)
        self._draft.pardon(version)
        return version.model_copy(update={"compression": result})

    def _failed(self, version: ServedVersion, status: dict[str, Any], *, told: bool) -> None:
        failed = c.find_condition(status["conditions"], c.FAILED)
        assert failed is not None
        lost = failed["reason"] == c.QUALITY_LOSS_TOO_HIGH
        reason = c.QUALITY_LOSS_TOO_HIGH if lost else c.COMPRESSION_FAILED
        why = failed["message"] if lost else f"{failed['reason']}: {failed['message']}"
        message = f"version {version.version} ({version.source}) is not served: {why}"
        if not told:
            self._plan.note("Warning", reason, message)
            self._draft.reject(version, reason, why)
        self._draft.set(c.COMPRESSED, "False", reason, message)
        self._draft.set(c.PROGRESSING, "False", reason, message)


def in_words(result: CompressionResult) -> str:
    """What it gained and lost, in one line."""
    before, after = result.before, result.after
    return (
        f"{result.scheme}{' (made before)' if result.cached else ''}: bytes in memory {before.memory_bytes} -> "
        f"{after.memory_bytes}, on disk {before.size_bytes} -> {after.size_bytes}, perplexity {before.perplexity} -> "
        f"{after.perplexity}, tokens/s {before.tokens_per_second} -> {after.tokens_per_second}; runs as "
        f"{result.execution}"
    )


def lost_too_much(version: ServedVersion, compression: Compression | None) -> str | None:
    """Why a version that serves would not be taken any more, because maxQualityLoss was lowered since; else None."""
    if compression is None or version.compression is None or compression.max_quality_loss is None:
        return None
    loss, limit = float(version.compression.quality_loss), float(compression.max_quality_loss)
    if loss <= limit:
        return None
    return (
        f"version {version.version} lost {loss:.2%} of its perplexity by compression where {limit:.2%} is allowed now "
        "(spec.compression.maxQualityLoss): choose a milder scheme, or allow more"
    )


def _ended(status: dict[str, Any]) -> bool:
    conditions = status.get("conditions", [])
    return c.is_true(conditions, c.SUCCEEDED) or c.is_true(conditions, c.FAILED)
