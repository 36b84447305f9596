"""The compression of one version, as the ladder of all runs (controllers/runs) sees it. Pure.

A Deployment's compression is a run like a TrainJob, but it is no object of its own: its status stands in the
Deployment's status.compression, and what is its spec there is put together from the version and spec.compression.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from slipway_api import GROUP
from slipway_api import conditions as c
from slipway_api.compression import Compression, SchemeName
from slipway_api.deployment import DeploymentSpec, ServedVersion
from slipway_api.references import ModelReference
from slipway_api.run import CompressRunSpec, Report, RunEnd
from slipway_api.trainjob import Retry, WorkerResources, Workers
from slipway_operator.controllers.runs.attempts import out_of_memory_ends
from slipway_operator.controllers.runs.kind import RunKind, RunPlace, RunSpecification
from slipway_operator.controllers.runs.observed import Observed, Plan, Settings
from slipway_operator.controllers.runs.status import StatusDraft
from slipway_operator.kube.resource import DEPLOYMENTS
from slipway_operator.planner.fit import fit_workers

LABEL_KEY = f"{GROUP}/compression"
"""On a RayJob: which compression it is an attempt of. An older one's must not be taken for one of this."""


@dataclass(frozen=True)
class CompressionRun:
    """What is to be compressed, for which version, how, and with what."""

    version: str
    model: ModelReference
    digest: str
    compression: Compression
    workers: Workers
    suspend: bool = False
    queue: str | None = None
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None

    @property
    def scheme(self) -> SchemeName:
        """The scheme."""
        return self.compression.scheme

    @property
    def retry(self) -> Retry:
        """What to do when it ends without the user's fault."""
        return self.compression.retry

    @property
    def key(self) -> str:
        """Its name: a digest of the version and of everything that spec.compression says.

        Another version of the same weights is another run: it finds them made, and compares every byte.
        """
        parts = [self.version, self.model.to_wire(), self.digest, self.compression.to_wire(), self.workers.to_wire()]
        return f"c-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Unwanted:
    """A compression that nobody waits for: what of it still runs is to stop."""

    workers: Workers
    retry: Retry = field(default_factory=Retry)
    suspend: bool = True
    queue: str | None = None
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None


def run_of(version: ServedVersion, spec: DeploymentSpec, compression: Compression) -> CompressionRun:
    """The run that makes the compressed weights of a version."""
    resources = compression.resources or spec.replicas.resources
    return CompressionRun(
        version.version, version.reference, version.digest, compression, Workers(count=1, resources=resources)
    )


def child_name(name: str, attempt: int) -> str:
    """`<name>-c<attempt>`. Attempt 0, which never runs, stands for all of them."""
    return f"{name}-c{attempt}" if attempt else f"{name}-c"


class CompressionKind(RunKind[RunSpecification]):
    """Compresses a version of a Deployment. `wanted` None: nobody waits for it, and it is to stop."""

    resource = DEPLOYMENTS
    entrypoint = "python -m slipway_jobs.compress"
    kept = "nothing is kept"
    stopped = "stopped: nobody waits for this version (any more)"
    driver_alone = True

    def __init__(self, wanted: CompressionRun | None) -> None:
        self._wanted = wanted

    def child_name(self, name: str, attempt: int) -> str:
        """See the function."""
        return child_name(name, attempt)

    def labels(self, job: dict[str, Any]) -> dict[str, str]:
        """The key."""
        assert self._wanted is not None
        return {LABEL_KEY: self._wanted.key}

    def parse(self, job: dict[str, Any]) -> RunSpecification:
        """The run that is wanted; of one that is not, only what it was given."""
        if self._wanted is not None:
            return self._wanted
        gpus = (job.get("status") or {}).get("gpus", 0)
        return Unwanted(Workers(count=1, resources=WorkerResources(gpu=gpus)))

    def references(self, job: dict[str, Any]) -> list[str]:
        """The Deployment has resolved them."""
        return []

    def plan(
        self, observed: Observed, spec: RunSpecification, settings: Settings, plan: Plan
    ) -> RunSpecification | None:
        """Whether it fits. Nothing of it can be made smaller: once out of memory is enough."""
        verdict = fit_workers(spec.workers, settings.config.pools)
        if not verdict.fits:
            plan.fail(c.DOES_NOT_FIT, verdict.message.replace("spec.workers", "spec.compression"))
            return None
        plan.draft.put_pool(verdict.pool)
        ended = out_of_memory_ends(plan.draft.records())
        if ended:
            last = next(r for r in reversed(plan.draft.records()) if r.get("outcome") == "OutOfMemory")
            plan.fail(
                "OutOfMemory",
                f"{last.get('message', 'out of memory')}: raise spec.compression.resources.memory, or calibrate on "
                "fewer or shorter samples",
            )
            return None
        return spec

    def say_planned(self, observed: Observed, spec: RunSpecification, settings: Settings, draft: StatusDraft) -> None:
        """Where."""
        draft.put_pool(fit_workers(spec.workers, settings.config.pools).pool)

    def run(self, spec: RunSpecification, place: RunPlace) -> CompressRunSpec:
        """What the compression driver is told."""
        wanted = self._wanted
        assert wanted is not None
        return CompressRunSpec(
            **place.identity(), model=wanted.model, digest=wanted.digest, compression=wanted.compression
        )

    def fold(self, report: Report, draft: StatusDraft) -> None:
        """The stage is all that it says before its end."""

    def result_of(self, end: RunEnd) -> dict[str, Any] | None:
        """The compressed model."""
        return end.compression.to_wire() if end.compression else None

    def succeed(self, result: dict[str, Any], draft: StatusDraft) -> None:
        """It has its model."""
        draft.put("result", result)

    def conclude(self, job: dict[str, Any], draft: StatusDraft) -> None:
        """Nothing more to say."""
