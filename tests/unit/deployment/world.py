"""A Deployment in memory: objects, a clock, Ray Serve played by hand, and an operator that may die at any moment."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from slipway_api.deployment import DeploymentSpec
from slipway_api.drift import DriftStatus
from slipway_operator.config import OperatorConfig, ReportsConfig, StorageConfig
from slipway_operator.controllers.deployment.analysis import Tally
from slipway_operator.controllers.deployment.decide import decide
from slipway_operator.controllers.deployment.observed import Decision, Observed
from slipway_operator.controllers.runs.observed import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(
    config=OperatorConfig(
        storage=StorageConfig(uri="file:///data"),
        reports=ReportsConfig(listen="127.0.0.1:0", url="http://127.0.0.1:1", key_file=Path("/nowhere")),
    ),
    report_key=b"key",
)


def trained(name: str, letter: str, *, failed: bool = False) -> dict[str, Any]:
    """A TrainJob that has ended."""
    end = {"type": "Failed" if failed else "Succeeded", "status": "True", "message": "lost", "reason": "X"}
    model = {} if failed else {"model": {"uri": f"/data/{name}/{letter}", "digest": f"sha256:{letter}"}}
    return {"metadata": {"name": name, "namespace": "team"}, "status": {"conditions": [end], **model}}


def evaluated(letter: str, passed: str, message: str = "held-out/perplexity 9 <= 10") -> dict[str, Any]:
    """An EvalJob that has measured the model with this digest."""
    condition = {"type": "Passed", "status": passed, "message": message, "reason": "X"}
    return {"status": {"conditions": [condition], "model": {"uri": "/x", "digest": f"sha256:{letter}"}}}


class Crash(Exception):  # noqa: N818 - it is an event, not an error
    """The operator dies here."""


@dataclass
class World:
    """One Deployment and what it refers to."""

    spec: dict[str, Any]
    now: datetime = START
    status: dict[str, Any] | None = None
    ray_service: dict[str, Any] | None = None
    foreign: bool = False
    missing: bool = False
    train_job: dict[str, Any] | None = field(default_factory=lambda: trained("base", "a"))
    eval_jobs: dict[str, Any] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    ready: dict[str, Any] | None = None  # condition of the RayService; without applications then
    pods: list[dict[str, Any]] = field(default_factory=list)  # of the RayService's cluster, projected
    drift: DriftStatus | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    endpoints: bool = True  # whether requests reach a router
    states: dict[str, tuple[str, str]] = field(default_factory=dict)  # what Serve says; RUNNING where nothing is said
    events: list[str] = field(default_factory=list)
    generation: int = 1
    decision: Decision | None = None

    @classmethod
    def of(cls, **changes: Any) -> World:
        """A world with one new Deployment of TrainJob `base`."""
        return cls(spec=cls._full(changes))

    @staticmethod
    def _full(changes: dict[str, Any]) -> dict[str, Any]:
        return DeploymentSpec.model_validate({"model": {"trainJob": {"name": "base"}}} | changes).to_wire()

    def change(self, **changes: Any) -> None:
        """The user applies the manifest again."""
        self.spec = DeploymentSpec.model_validate(self.spec | changes).to_wire()
        self.generation += 1

    def observe(self) -> Observed:
        metadata = {"name": "chat", "namespace": "team", "uid": "uid-0", "generation": self.generation}
        metadata["annotations"] = dict(self.annotations)
        deployment = {"kind": "Deployment", "metadata": metadata, "spec": self.spec}
        if self.status is not None:
            deployment["status"] = self.status
        return Observed(
            deployment=copy.deepcopy(deployment),
            ray_service=copy.deepcopy(self._served()),
            foreign_ray_service=self.foreign,
            ray_operator_missing=self.missing,
            train_job=self.train_job,
            eval_jobs=self.eval_jobs,
            tallies=self.tallies,
            pods=self.pods,
            drift=self.drift,
        )

    def _served(self) -> dict[str, Any] | None:
        if self.ray_service is None:
            return None
        if self.ready is not None:
            return {**self.ray_service, "status": {"conditions": [{"type": "Ready", **self.ready}]}}
        told = {}
        for name in self.applications():
            state, message = self.states.get(name, ("RUNNING", ""))
            told[name] = {"status": state, "message": message}
        ready = {"type": "Ready", "status": "True" if self.endpoints else "False"}
        status = {"activeServiceStatus": {"applicationStatuses": told}, "conditions": [ready]}
        return {**self.ray_service, "status": status}

    def step(self, *, dies_after: int | None = None) -> Decision:
        """One reconcile. With `dies_after`, the operator dies after so many effects."""
        decision = decide(self.observe(), SETTINGS, self.now)
        effects = [*(("apply", child) for child in decision.apply), *(("delete", child) for child in decision.delete)]
        for number, (verb, child) in enumerate(effects):
            if dies_after is not None and number >= dies_after:
                raise Crash
            self.effect(verb, copy.deepcopy(child))
        if dies_after is not None and len(effects) >= dies_after:
            raise Crash
        self.status = decision.status
        self.events += [f"{event.reason}: {event.message}" for event in decision.events]
        self.decision = decision
        return decision

    def written(self) -> Any:
        """All that the operator has written."""
        return self.status, self.ray_service

    def effect(self, verb: str, child: dict[str, Any]) -> None:
        """What the API server does with a write."""
        if child["kind"] == "RayService":
            self.ray_service = child if verb == "apply" else None

    def run(self, seconds: float = 0, *, every: float = 1.0) -> None:
        """Reconcile until nothing changes, and on for so many seconds."""
        end = self.now + timedelta(seconds=seconds)
        while True:
            for _ in range(10):
                before = self.written()
                self.step()
                if self.written() == before:
                    break
            else:
                raise AssertionError(f"does not come to rest: {self.status}")
            if self.now >= end:
                return
            self.now += timedelta(seconds=every)

    # --- reading ---

    def config(self) -> dict[str, Any]:
        """serveConfigV2 of the RayService."""
        assert self.ray_service is not None
        loaded: dict[str, Any] = json.loads(self.ray_service["spec"]["serveConfigV2"])
        return loaded

    def applications(self) -> list[str]:
        """Names of the Serve applications."""
        return [app["name"] for app in self.config()["applications"]]

    def weights(self) -> dict[str, int]:
        """Version -> weight, as the router is told."""
        router = self.config()["applications"][0]["deployments"][0]["user_config"]
        return {version["name"]: version["weight"] for version in router["versions"]}

    def condition(self, type_: str) -> tuple[str, str]:
        """(status, reason) of a condition."""
        assert self.status is not None
        found = next(c for c in self.status["conditions"] if c["type"] == type_)
        return found["status"], found["reason"]

    def message(self, type_: str) -> str:
        """The message of a condition."""
        assert self.status is not None
        return str(next(c for c in self.status["conditions"] if c["type"] == type_)["message"])

    def stable(self) -> str:
        """Name of the stable version."""
        assert self.status is not None
        return str(self.status["stable"]["version"])

    def candidate(self) -> str | None:
        """Name of the candidate."""
        assert self.status is not None
        found = self.status.get("candidate")
        return str(found["version"]) if found else None

    def traffic(self, draws: random.Random, requests: int, rates: dict[str, float]) -> None:
        """So many requests come; `rates` are the error rates of the versions."""
        weights = self.weights()
        for _ in range(requests):
            (name,) = draws.choices(list(weights), weights=list(weights.values()))
            tally = self.tallies.get(name, Tally())
            failed = draws.random() < rates.get(name, 0.0)
            self.tallies[name] = Tally(tally.requests + 1, tally.errors + failed, tally.latency_p99_ms)
