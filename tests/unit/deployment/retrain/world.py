"""A Deployment whose traffic drifts: the watcher, the jobs and the clock played by hand, an operator that may die."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from slipway_api.deployment import DeploymentStatus
from slipway_api.evaljob import EvalJobSpec
from slipway_api.trainjob import TrainJobSpec
from slipway_cli.manifests import Manifest
from slipway_cli.validation import check
from slipway_operator.controllers.deployment.decide import decide
from slipway_operator.controllers.deployment.observed import Decision, Observed
from slipway_operator.controllers.deployment.retrain.observed import RetrainObserved
from slipway_operator.controllers.runs.attempts import format_time

from ..world import SETTINGS, Crash, World, trained  # noqa: TID252 - tests are no installed package

__all__ = ["SNAPSHOT", "TEMPLATE", "Crash", "RetrainWorld", "template", "trained"]

TEMPLATE: dict[str, Any] = {
    "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
    "tokenizer": {"train": {}},
    "data": {"sources": [{"uri": "/corpus"}], "evalSources": [{"uri": "/corpus-held-out"}], "sequenceLength": 64},
    "training": {"steps": 100},
    "workers": {"count": 2, "resources": {"cpu": "1"}},
    "ttlSecondsAfterFinished": 0,
    "suspend": True,
    "queue": "team-a",
    "priorityClassName": "urgent",
}
SNAPSHOT = {
    "uri": "/storage/snapshot-1",
    "digest": "sha256:s1",
    "examples": 900,
    "heldOut": 100,
    "time": "2026-01-01T00:00:00Z",
}


def template(**changes: Any) -> dict[str, Any]:
    """The TrainJob that a retrain copies."""
    spec = TrainJobSpec.model_validate(TEMPLATE | changes).to_wire()
    return {"kind": "TrainJob", "metadata": {"name": "base", "namespace": "team"}, "spec": spec}


@dataclass
class RetrainWorld(World):
    """A Deployment with spec.drift.retrain, and the jobs that come of it."""

    jobs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    strangers: list[dict[str, Any]] = field(default_factory=list)  # jobs of somebody else
    refusals: dict[str, str] = field(default_factory=dict)  # jobs that the server refuses to make
    template: dict[str, Any] | None = field(default_factory=template)
    created: list[str] = field(default_factory=list)  # every job that was ever made

    @classmethod
    def drifting(cls, retrain: dict[str, Any] | None = None, **changes: Any) -> RetrainWorld:
        """A world whose first version serves."""
        spec = cls._full(
            {"drift": {"retrain": {"trainJob": {"name": "base"}, **(retrain or {})}}, "model": {"uri": "/m/a"}}
            | changes
        )
        world = cls(spec=spec)
        world.run()
        assert world.stable()
        return world

    # --- the outer world ---

    def alarm(self, id_: str = "alarm-1", signal: str = "input-length", **drift: Any) -> None:
        """The watcher reports a signal that drifts; earlier ones stay in its list."""
        assert self.status is not None
        told = self.status.setdefault("drift", {"alarms": [], "active": [], "snapshot": SNAPSHOT})
        found = {
            "id": id_,
            "kind": "data",
            "signal": signal,
            "test": "ks",
            "statistic": "0.4",
            "effect": "0.4",
            "threshold": "0.1",
            "window": 3,
            "start": format_time(self.now),
            "end": format_time(self.now),
        }
        told["alarms"] = [found, *told["alarms"]][:20]
        told["active"] = sorted({*told["active"], signal})
        told["version"] = self.stable()
        told.update(drift)

    def calm(self) -> None:
        """Every signal is as it was."""
        assert self.status is not None
        self.status["drift"]["active"] = []

    def trains(self, letter: str = "b", seconds: int = 3600) -> None:
        """The TrainJob at work succeeds, after so many seconds."""
        job = self.job("TrainJob")
        self.now += timedelta(seconds=seconds)
        job["status"] = {
            "conditions": [{"type": "Succeeded", "status": "True", "reason": "ModelSaved", "message": ""}],
            "model": {"uri": f"/m/{letter}", "digest": f"sha256:{letter}"},
            "usage": {"workerSeconds": seconds * 2, "gpuSeconds": 0},
        }

    def fails(self, kind: str = "TrainJob") -> None:
        """A job at work fails."""
        self.job(kind)["status"] = {
            "conditions": [{"type": "Failed", "status": "True", "reason": "UserError", "message": "no such data"}]
        }

    def measures(self, passed: bool = True, *, name: str | None = None, difference: str = "-0.7") -> None:
        """The EvalJob at work ends."""
        job = self.job("EvalJob", name)
        trained = self.job("TrainJob")["status"]["model"]
        scores = [("new", "loss", difference), ("new", "perplexity", "-4"), ("old", "perplexity", "0.1")]
        job["status"] = {
            "conditions": [
                {"type": "Succeeded", "status": "True", "reason": "ResultsSaved", "message": ""},
                {"type": "Passed", "status": str(passed), "reason": "X", "message": "new/loss is what it is"},
            ],
            "model": trained,
            "metrics": [
                {"suite": suite, "metric": metric, "value": "8", "baseline": {"value": "12", "difference": by}}
                for suite, metric, by in scores
            ],
        }

    def job(self, kind: str, name: str | None = None) -> dict[str, Any]:
        """A job of the retrain at work."""
        run = self.retrain()["current"]["id"]
        return self.jobs[kind, name or run]

    # --- the operator ---

    def observe(self) -> Observed:
        observed = super().observe()
        return replace(
            observed,
            retrain=RetrainObserved(
                jobs=copy.deepcopy(list(self.jobs.values())),
                foreign=copy.deepcopy(self.strangers),
                template=copy.deepcopy(self.template),
                refusals=self.refusals,
            ),
        )

    def written(self) -> Any:
        """Every write is seen by the operator and wakes it."""
        return self.status, self.ray_service, copy.deepcopy(self.jobs)

    def step(self, *, dies_after: int | None = None) -> Decision:
        """One reconcile, in the controller's order. With `dies_after`, the operator dies after so many writes."""
        decision = decide(self.observe(), SETTINGS, self.now)
        effects: list[tuple[str, Any]] = [
            *(("create", child) for child in decision.create),
            *(("apply", child) for child in decision.apply),
            *(("patch", patch) for patch in decision.patch),
            *(("delete", child) for child in decision.delete),
        ]
        for number, (verb, what) in enumerate(effects):
            if dies_after is not None and number >= dies_after:
                raise Crash
            self._do(verb, what)
        if dies_after is not None and len(effects) >= dies_after:
            raise Crash
        DeploymentStatus.model_validate(decision.status)
        self.status = copy.deepcopy(decision.status)
        self.events += [f"{event.reason}: {event.message}" for event in decision.events]
        self.decision = decision
        return decision

    def _do(self, verb: str, what: Any) -> None:
        if verb == "apply":
            if what["kind"] == "RayService":
                self.ray_service = copy.deepcopy(what)
        elif verb == "create":
            key = what["kind"], what["metadata"]["name"]
            assert key not in self.jobs, f"{key} is made twice"
            assert [str(problem) for problem in check([Manifest(what, "made")])] == [], "the server would refuse it"
            model = TrainJobSpec if what["kind"] == "TrainJob" else EvalJobSpec
            made = copy.deepcopy(what)
            made["spec"] = model.model_validate(made["spec"]).to_wire()  # with its defaults, as the server stores it
            made["metadata"]["uid"] = f"uid-{len(self.created)}"
            self.jobs[key] = made
            self.created.append(f"{key[0]}/{key[1]}")
        elif verb == "patch":
            self.jobs[what.obj["kind"], what.obj["metadata"]["name"]]["spec"].update(what.body["spec"])
        elif what["kind"] == "RayService":
            self.ray_service = None
        else:
            del self.jobs[what["kind"], what["metadata"]["name"]]

    # --- reading ---

    def retrain(self) -> dict[str, Any]:
        """status.retrain."""
        assert self.status is not None
        found: dict[str, Any] = self.status["retrain"]
        return found

    def stage(self) -> str | None:
        """How far the retrain at work is."""
        current = self.retrain().get("current")
        return current["stage"] if current else None

    def last(self) -> dict[str, Any]:
        """The retrain that ended last."""
        found: dict[str, Any] = self.retrain()["history"][0]
        return found

    def train_jobs(self) -> list[str]:
        """Every TrainJob that was ever made."""
        return [name for name in self.created if name.startswith("TrainJob/")]

    def edit_retrain(self, **changes: Any) -> None:
        """The user changes spec.drift.retrain."""
        retrain = self.spec["drift"]["retrain"] | changes
        self.change(drift={"retrain": retrain})

    def to_promotion(self, letter: str = "b") -> None:
        """From an alarm that was just told until the new version has taken over."""
        self.run()
        self.trains(letter)
        self.run()
        self.measures()
        self.run(90)
        self.run()
