"""Does what decide.py decided about a Deployment: applies, deletes, writes status once and only if it changed.

Nothing is decided here, and children are written by runs/children.py. A RayService, unlike a RayJob, is ours to write
again and again: server-side apply of the whole of it, but only when its digest says that something has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from slipway_api import conditions as c
from slipway_operator.controllers.deployment.compression_run import child_name
from slipway_operator.controllers.deployment.decide import decide
from slipway_operator.controllers.deployment.observed import Decision, Observed
from slipway_operator.controllers.deployment.retrain.observed import RetrainObserved, names_of
from slipway_operator.controllers.deployment.serving_reports import ServingReports
from slipway_operator.controllers.deployment.status import Draft
from slipway_operator.controllers.deployment.trouble import clusters_of
from slipway_operator.controllers.runs.children import FIELD_MANAGER, Children
from slipway_operator.controllers.runs.observe import CLUSTER_INDEX, OWNER_INDEX, RunCaches, observe_run
from slipway_operator.controllers.runs.observed import Settings
from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import Forbidden, Invalid
from slipway_operator.kube.events import EventRecorder
from slipway_operator.kube.expectations import Expectations
from slipway_operator.kube.outcomes import Done, Outcome, RequeueAfter
from slipway_operator.kube.resource import (
    DEPLOYMENTS,
    EVALJOBS,
    RAYJOBS,
    RAYSERVICES,
    TRAINJOBS,
    Key,
    controller_of,
    uid_of,
)
from slipway_operator.kube.store import Store
from slipway_operator.reports import ReportStore

MODEL_INDEX = "model"
REQUIREMENT_INDEX = "requirement"
_FORBIDDEN_SECONDS = 15.0


def by_model(deployment: dict[str, Any]) -> list[str]:
    """Index of Deployments: namespace/name of the TrainJobs that spec.model and spec.drift.retrain name."""
    spec = deployment.get("spec", {})
    named = [spec.get("model", {}).get("trainJob"), ((spec.get("drift") or {}).get("retrain") or {}).get("trainJob")]
    return [f"{deployment['metadata']['namespace']}/{reference['name']}" for reference in named if reference]


def by_requirement(deployment: dict[str, Any]) -> list[str]:
    """Index of Deployments: namespace/name of the EvalJobs that spec.requires names."""
    namespace = deployment["metadata"]["namespace"]
    return [
        f"{namespace}/{requirement['evalJob']['name']}"
        for requirement in deployment.get("spec", {}).get("requires", [])
        if requirement.get("evalJob")
    ]


@dataclass(frozen=True)
class Caches:
    """What the controller reads."""

    deployments: Store
    ray_services: Store
    ray_services_missing: Callable[[], bool]
    train_jobs: Store
    eval_jobs: Store
    runs: RunCaches


class DeploymentReconciler:
    """Brings one Deployment a step closer to what it says."""

    def __init__(
        self,
        client: Client,
        caches: Caches,
        reports: ServingReports,
        run_reports: ReportStore,
        recorder: EventRecorder,
        expectations: Expectations,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._children = Children(client, expectations, (RAYSERVICES, RAYJOBS, TRAINJOBS, EVALJOBS))
        self._caches = caches
        self._reports = reports
        self._run_reports = run_reports
        self._recorder = recorder
        self._expectations = expectations
        self._settings = settings
        self._clock = clock

    async def reconcile(self, key: Key) -> Outcome:
        """Observe, decide, do."""
        deployment = self._caches.deployments.get(key)
        if deployment is None:
            self._expectations.forget(key)
            return Done()
        await self._acknowledge(deployment)
        observed, now = self._observe(key, deployment), self._clock()
        decision = decide(observed, self._settings, now)
        refusals = await self._make_jobs(key, decision.create)
        if refusals:  # ends that retrain, and nothing else: what serves goes on
            observed = replace(observed, retrain=replace(observed.retrain, refusals=refusals))
            decision = decide(observed, self._settings, now)
        try:
            for child in decision.apply:
                await self._children.apply(key, child)
            for patch in decision.patch:
                await self._children.patch(key, patch)
        except Forbidden as error:
            return await self._tell_forbidden(key, deployment, error)
        for child in decision.delete:
            await self._children.delete(key, child)
        await self._write_status(key, deployment, decision)
        for event in decision.events:
            self._recorder.event(deployment, event.type, event.reason, event.message)
        return RequeueAfter(decision.requeue_after) if decision.requeue_after is not None else Done()

    def _observe(self, key: Key, deployment: dict[str, Any]) -> Observed:
        uid, spec = uid_of(deployment), deployment["spec"]
        found = self._caches.ray_services.get(key)
        owner = controller_of(found) if found is not None else None
        ours = owner is not None and owner["uid"] == uid
        reference = spec["model"].get("trainJob")
        names = [item["evalJob"]["name"] for item in spec.get("requires", []) if item.get("evalJob")]
        clusters = [f"{key.namespace}/{cluster}" for cluster in clusters_of(found if ours else None)]
        jobs = {name: self._caches.eval_jobs.get(Key(key.namespace, name)) for name in names}
        return Observed(
            deployment=deployment,
            ray_service=found if ours else None,
            foreign_ray_service=found is not None and not ours,
            ray_operator_missing=self._caches.ray_services_missing(),
            train_job=self._caches.train_jobs.get(Key(key.namespace, reference["name"])) if reference else None,
            eval_jobs={name: job for name, job in jobs.items() if job is not None},
            tallies=self._reports.tallies(uid),
            pods=[pod for one in clusters for pod in self._caches.runs.pods.by_index(CLUSTER_INDEX, one)],
            remembered_pods=[pod for one in clusters for pod in self._caches.runs.testimony.of(one)],
            runs=observe_run(deployment, self._next_ray_job(deployment), self._caches.runs, self._run_reports),
            retrain=self._observe_retrain(key, deployment),
            drift=self._reports.drift(uid),
        )

    def _observe_retrain(self, key: Key, deployment: dict[str, Any]) -> RetrainObserved:
        uid, spec = uid_of(deployment), deployment["spec"]
        stores = (self._caches.train_jobs, self._caches.eval_jobs)
        template = ((spec.get("drift") or {}).get("retrain") or {}).get("trainJob")
        current = ((deployment.get("status") or {}).get("retrain") or {}).get("current")
        names = names_of(current["id"], len(current.get("requirements", []))) if current else []
        named = [store.get(Key(key.namespace, name)) for name in names for store in stores]
        return RetrainObserved(
            jobs=[job for store in stores for job in store.by_index(OWNER_INDEX, uid)],
            foreign=[job for job in named if job and (controller_of(job) or {}).get("uid") != uid],
            template=self._caches.train_jobs.get(Key(key.namespace, template["name"])) if template else None,
        )

    @staticmethod
    def _next_ray_job(deployment: dict[str, Any]) -> str:
        compression = (deployment.get("status") or {}).get("compression") or {}
        return child_name(deployment["metadata"]["name"], compression.get("attempt", 0) + 1)

    async def _make_jobs(self, key: Key, jobs: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Makes the jobs of a retrain; returns why those were refused that may not be."""
        refusals = {}
        for job in jobs:
            try:
                await self._children.apply(key, job)
            except (Invalid, Forbidden) as error:
                refusals[job["metadata"]["name"]] = error.message
        return refusals

    async def _acknowledge(self, deployment: dict[str, Any]) -> None:
        """What the stored status says of ends is durable: tell the compressions that wait to hear it."""
        attempts = ((deployment.get("status") or {}).get("compression") or {}).get("attempts", [])
        ended = [record["number"] for record in attempts if record.get("outcome")]
        if ended:
            await self._run_reports.mark_ended(uid_of(deployment), ended[-1])

    async def _tell_forbidden(self, key: Key, deployment: dict[str, Any], error: Forbidden) -> Outcome:
        message = (
            f"refused in namespace {key.namespace}: {error.message}. If the operator lacks a right there, add the "
            "namespace to the chart's watch.namespaces; serving starts by itself then"
        )
        draft = Draft(deployment, self._clock())
        # What serves already goes on: only what was to come next is refused.
        draft.set(c.AVAILABLE if draft.stable is None else c.PROGRESSING, "False", c.FORBIDDEN, message)
        await self._write_status(key, deployment, Decision(status=draft.finish()))
        self._recorder.event(deployment, "Warning", c.FORBIDDEN, message)
        return RequeueAfter(_FORBIDDEN_SECONDS)

    async def _write_status(self, key: Key, deployment: dict[str, Any], decision: Decision) -> None:
        if decision.status == deployment.get("status"):
            return
        metadata = deployment["metadata"]
        body = {
            "metadata": {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion")},
            "status": decision.status,
        }
        written = await self._client.apply_status(DEPLOYMENTS, body, field_manager=FIELD_MANAGER)
        self._expectations.wrote(key, DEPLOYMENTS, written)
        if decision.ended_attempt is not None:
            await self._run_reports.mark_ended(metadata["uid"], decision.ended_attempt)
