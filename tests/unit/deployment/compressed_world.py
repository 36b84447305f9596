"""A Deployment whose model is compressed: the world of world.py with RayJobs, played by hand."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from slipway_api.run import CompressRunSpec, Report
from slipway_operator.controllers.deployment.observed import Observed
from slipway_operator.controllers.runs.attempts import format_time
from slipway_operator.controllers.runs.observed import Observed as RunObserved

from .world import World

HELD_OUT = {"sources": [{"uri": "/data/held-out"}], "maxTokens": 1024}
INT8 = {"int8Dynamic": {}, "heldOut": HELD_OUT}
NF4 = {"nf4": {}, "heldOut": HELD_OUT}


@dataclass
class CompressedWorld(World):
    """One Deployment with spec.compression, and the RayJobs that compress."""

    ray_jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)  # names of RayJobs, in the order of creation
    report: Report | None = None
    report_attempt: int = 0
    ray_jobs_missing: bool = False
    foreign_ray_job: dict[str, Any] | None = None
    deleted: bool = False

    def observe(self) -> Observed:
        observed = super().observe()
        if self.deleted:
            observed.deployment["metadata"]["deletionTimestamp"] = format_time(self.now)
        runs = RunObserved(
            job=observed.deployment,
            ray_jobs=copy.deepcopy(list(self.ray_jobs.values())),
            report=self.report,
            report_attempt=self.report_attempt,
            ray_operator_missing=self.ray_jobs_missing,
            foreign_ray_job=self.foreign_ray_job,
        )
        return dataclasses.replace(observed, runs=runs)

    def effect(self, verb: str, child: dict[str, Any]) -> None:
        name = child["metadata"]["name"]
        if child["kind"] == "RayJob" and verb == "apply":
            assert name not in self.ray_jobs, "AlreadyExists"
            child["metadata"]["creationTimestamp"] = format_time(self.now)
            self.ray_jobs[name] = child
            self.created.append(name)
        elif child["kind"] == "RayJob":
            self.ray_jobs[name]["metadata"]["deletionTimestamp"] = format_time(self.now)
        else:
            super().effect(verb, child)

    # --- what the rest of the world does ---

    def finalize(self) -> None:
        """KubeRay has stopped what is being deleted."""
        self.ray_jobs = {n: o for n, o in self.ray_jobs.items() if "deletionTimestamp" not in o["metadata"]}

    def say(self, stage: str, **fields: Any) -> None:
        """The newest attempt reports."""
        self.report_attempt = self.attempt()
        self.report = Report.model_validate({"sequence": 1, "time": format_time(self.now), "stage": stage, **fields})

    def end(self, outcome: str, reason: str, message: str, **fields: Any) -> None:
        """The newest attempt reports its end, and KubeRay says so too."""
        self.say("Ended", end={"outcome": outcome, "reason": reason, "message": message, **fields})
        self.ray_jobs[self.created[-1]]["status"] = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}

    def succeed(self, *, letter: str = "c", loss: str = "0.01", cached: bool = False) -> None:
        """The newest attempt has compressed the model."""
        spec = self.contract()
        result = {
            "scheme": spec.compression.scheme,
            "uri": f"/data/cache/{letter}",
            "digest": f"sha256:{letter}",
            "baseDigest": spec.digest,
            "schemeDigest": "sha256:s",
            "execution": "the kernel",
            "before": {"sizeBytes": 400, "memoryBytes": 500, "perplexity": "10", "tokensPerSecond": "20"},
            "after": {"sizeBytes": 100, "memoryBytes": 150, "perplexity": "10.1", "tokensPerSecond": "30"},
            "qualityLoss": loss,
            "speedUp": "1.5",
            "cached": cached,
        }
        self.end("Succeeded", "ModelCompressed", "made it", compression=result)

    def compressed(self) -> None:
        """Everything that is asked for is compressed and served."""
        self.run()
        self.succeed()
        self.run()

    # --- reading ---

    def attempt(self) -> int:
        return int(self.ray_jobs[self.created[-1]]["metadata"]["labels"]["slipway.dev/attempt"])

    def contract(self) -> CompressRunSpec:
        """What the newest run was told."""
        head = self.ray_jobs[self.created[-1]]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        return CompressRunSpec.model_validate_json(head["containers"][0]["env"][0]["value"])

    def live(self) -> list[str]:
        """RayJobs that still run something."""
        return [
            name
            for name, job in self.ray_jobs.items()
            if "deletionTimestamp" not in job["metadata"] and "status" not in job
        ]

    def compression(self) -> dict[str, Any]:
        """status.compression."""
        assert self.status is not None
        found: dict[str, Any] = self.status["compression"]
        return found

    def engine(self, version: str) -> dict[str, Any]:
        """What the engine of a version is told."""
        found: dict[str, Any] = next(a["args"] for a in self.config()["applications"] if a["name"] == version)
        return found
