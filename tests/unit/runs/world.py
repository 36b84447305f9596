"""A world in memory for the decision ladder: objects, a clock, and an executor that can die between any two effects."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from slipway_api.evaljob import EvalJobSpec
from slipway_api.run import Report
from slipway_api.trainjob import TrainJobSpec
from slipway_operator.config import OperatorConfig, PoolConfig, ReportsConfig, StorageConfig
from slipway_operator.controllers.evaljob.kind import EvalJobKind
from slipway_operator.controllers.runs.attempts import format_time
from slipway_operator.controllers.runs.decide import decide
from slipway_operator.controllers.runs.kind import RunKind
from slipway_operator.controllers.runs.observed import Decision, Observed, Patch, Settings
from slipway_operator.controllers.runs.pods import project
from slipway_operator.controllers.trainjob.kind import TrainJobKind

KIND = TrainJobKind()
START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(
    config=OperatorConfig(
        storage=StorageConfig(uri="file:///data"),
        reports=ReportsConfig(listen="127.0.0.1:0", url="http://127.0.0.1:1", key_file=Path("/nowhere")),
        pools=[PoolConfig(name="local", nodes=1, cpus=2, memory="8Gi")],
    ),
    report_key=b"key",
)


def spec(**changes: Any) -> dict[str, Any]:
    """A complete, defaulted spec as the API server stores it; `changes` replaces top-level fields."""
    minimal: dict[str, Any] = {
        "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
        "tokenizer": {"train": {}},
        "data": {"sources": [{"uri": "python://stdlib"}]},
        "training": {"steps": 100, "globalBatchSize": 16, "microBatchSize": 4},
        "workers": {"count": 2},
    }
    return TrainJobSpec.model_validate(minimal | changes).to_wire()


def eval_spec(**changes: Any) -> dict[str, Any]:
    """A complete, defaulted spec of an EvalJob."""
    minimal: dict[str, Any] = {
        "model": {"trainJob": {"name": "base"}},
        "data": {"sources": [{"uri": "python://stdlib"}]},
        "suites": [{"name": "held-out", "languageModeling": {}}],
    }
    return EvalJobSpec.model_validate(minimal | changes).to_wire()


class Crash(Exception):  # noqa: N818 - it is an event, not an error
    """The operator dies here."""


@dataclass
class World:
    """One TrainJob or EvalJob, its children, and what happened to them."""

    job: dict[str, Any]
    kind: RunKind[Any] = field(default_factory=TrainJobKind)
    settings: Settings = SETTINGS
    now: datetime = START
    children: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)  # names of RayJobs, in the order of creation
    report: Report | None = None
    report_attempt: int = 0
    train_jobs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name
    made_jobs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # by kind and name
    ray_operator_missing: bool = False
    foreign_ray_job: dict[str, Any] | None = None
    kueue_missing: bool = False
    pods: list[dict[str, Any]] = field(default_factory=list)  # projected, as the cache holds them
    pods_current: bool = False
    events: list[str] = field(default_factory=list)
    gone: bool = False
    uids: Any = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def of(cls, **changes: Any) -> World:
        """A world with one new TrainJob."""
        metadata = {"name": "job", "namespace": "team", "uid": "uid-0", "generation": 1}
        return cls(job={"kind": "TrainJob", "metadata": metadata, "spec": spec(**changes)})

    @classmethod
    def of_evaljob(cls, **changes: Any) -> World:
        """A world with one new EvalJob."""
        metadata = {"name": "job", "namespace": "team", "uid": "uid-0", "generation": 1}
        return cls(job={"kind": "EvalJob", "metadata": metadata, "spec": eval_spec(**changes)}, kind=EvalJobKind())

    # --- what the operator does ---

    def observe(self) -> Observed:
        ours = [copy.deepcopy(o) for o in self.children.values()]
        return Observed(
            job=copy.deepcopy(self.job),
            ray_jobs=[o for o in ours if o["kind"] == "RayJob"],
            report=self.report,
            report_attempt=self.report_attempt,
            train_jobs=copy.deepcopy(self.train_jobs),
            made_jobs=copy.deepcopy(list(self.made_jobs.values())),
            ray_operator_missing=self.ray_operator_missing,
            foreign_ray_job=self.foreign_ray_job,
            kueue_missing=self.kueue_missing,
            pods=copy.deepcopy(self.pods),
            pods_current=self.pods_current,
        )

    def reconcile(self, crash_after: int | None = None) -> Decision:
        """Decide and do; dies after that many effects."""
        decision = decide(self.kind, self.observe(), self.settings, self.now)
        effects = [
            *[lambda o=o: self._apply(o) for o in decision.apply],
            *[lambda p=p: self._patch(p) for p in decision.patch],
            *[lambda o=o: self._delete(o) for o in decision.delete],
            lambda: self._write_status(decision.status),
        ]
        if decision.delete_job:
            effects.append(lambda: setattr(self, "gone", True))
        for done, effect in enumerate(effects):
            if crash_after is not None and done >= crash_after:
                raise Crash
            effect()
        self.events += [e.reason for e in decision.events]
        return decision

    def settle(self) -> Decision:
        """Reconcile until nothing changes any more."""
        for _ in range(20):
            before = copy.deepcopy((self.job, self.children, self.made_jobs))
            decision = self.reconcile()
            if before == (self.job, self.children, self.made_jobs):
                return decision
        raise AssertionError("the ladder does not settle")

    def _apply(self, obj: dict[str, Any]) -> None:
        if obj["kind"] in ("TrainJob", "EvalJob"):
            return self._make(obj)
        key = (obj["kind"], obj["metadata"]["name"])
        if key not in self.children and obj["kind"] == "RayJob":
            self.created.append(obj["metadata"]["name"])
        stored = self.children.setdefault(key, copy.deepcopy(obj))
        stored["metadata"].setdefault("uid", f"uid-{next(self.uids)}")
        stored["metadata"].setdefault("creationTimestamp", format_time(self.now))

    def _make(self, obj: dict[str, Any]) -> None:
        """The API server stores a job with its defaults, and never a second one of a name."""
        key = (obj["kind"], obj["metadata"]["name"])
        assert key not in self.made_jobs, "AlreadyExists"
        model = TrainJobSpec if obj["kind"] == "TrainJob" else EvalJobSpec
        metadata = obj["metadata"] | {"uid": f"uid-{next(self.uids)}"}
        self.made_jobs[key] = obj | {"metadata": metadata, "spec": model.model_validate(obj["spec"]).to_wire()}

    def _patch(self, patch: Patch) -> None:
        stored = self.made_jobs[patch.obj["kind"], patch.obj["metadata"]["name"]]
        spec = stored["spec"] | patch.body["spec"]
        stored["spec"] = {name: value for name, value in spec.items() if value is not None}

    def _delete(self, obj: dict[str, Any]) -> None:
        stored = self.children.get((obj["kind"], obj["metadata"]["name"]))
        if stored is None:
            return
        if obj["kind"] == "RayJob":  # its finalizer stops the run first
            stored["metadata"]["deletionTimestamp"] = format_time(self.now)
        else:
            del self.children[obj["kind"], obj["metadata"]["name"]]

    def _write_status(self, status: dict[str, Any]) -> None:
        self.job["status"] = copy.deepcopy(status)

    # --- what the rest of the world does ---

    def edit(self, **changes: Any) -> None:
        self.job["spec"] = self.job["spec"] | changes
        self.job["metadata"]["generation"] += 1

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def live(self) -> list[dict[str, Any]]:
        """RayJobs that may still be running something."""
        return [
            o
            for o in self.children.values()
            if o["kind"] == "RayJob" and (o.get("status") or {}).get("jobStatus") not in ("SUCCEEDED", "FAILED")
        ]

    def ray_status(self, **status: Any) -> None:
        """KubeRay writes the status of the newest RayJob."""
        self.newest()["status"] = status

    def see(self, *pods: dict[str, Any]) -> None:
        """These are the pods now."""
        self.pods = [project(copy.deepcopy(pod)) for pod in pods]

    def newest(self) -> dict[str, Any]:
        return max(
            (o for o in self.children.values() if o["kind"] == "RayJob"),
            key=lambda o: int(o["metadata"]["labels"]["slipway.dev/attempt"]),
        )

    def finalize(self) -> None:
        """KubeRay has stopped what is being deleted."""
        for key in [k for k, o in self.children.items() if o["metadata"].get("deletionTimestamp")]:
            del self.children[key]

    def say(self, stage: str, sequence: int = 1, **fields: Any) -> None:
        """The newest attempt reports."""
        attempt = int(self.newest()["metadata"]["labels"]["slipway.dev/attempt"])
        self.report_attempt = attempt
        self.report = Report.model_validate(
            {"sequence": sequence, "time": format_time(self.now), "stage": stage, **fields}
        )

    # --- reading ---

    def condition(self, type_: str) -> tuple[str, str]:
        """(status, reason) of a condition."""
        found = next(c for c in self.job["status"]["conditions"] if c["type"] == type_)
        return found["status"], found["reason"]

    def message(self, type_: str) -> str:
        return str(next(c for c in self.job["status"]["conditions"] if c["type"] == type_)["message"])

    def outcomes(self) -> list[str | None]:
        return [r.get("outcome") for r in (self.job.get("status") or {}).get("attempts", [])]


MODEL = {"uri": "file:///m", "digest": "sha256:1", "parameters": 10}
SUCCESS = {"outcome": "Succeeded", "reason": "ModelSaved", "message": "trained 100 steps", "model": MODEL}


def exit_message(code: int) -> str:
    """RayJob status.message for a driver that ended with that code."""
    return f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):\nx"
