"""Does what decide.py decided about a Deployment: applies, deletes, writes status once and only if it changed.

Nothing is decided here. A RayService, unlike a RayJob, is ours to write again and again: server-side apply of the whole
of it, but only when its digest says that something has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from slipway_api import conditions as c
from slipway_operator.controllers.deployment.decide import decide
from slipway_operator.controllers.deployment.observed import Decision, Observed
from slipway_operator.controllers.deployment.serving_reports import ServingReports
from slipway_operator.controllers.deployment.status import Draft
from slipway_operator.controllers.runs.observed import Settings
from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import Forbidden, NotFound
from slipway_operator.kube.events import EventRecorder
from slipway_operator.kube.expectations import Expectations
from slipway_operator.kube.outcomes import Done, Outcome, RequeueAfter
from slipway_operator.kube.resource import (
    DEPLOYMENTS,
    RAYSERVICES,
    SECRETS,
    Key,
    Resource,
    controller_of,
    key_of,
    uid_of,
)
from slipway_operator.kube.store import Store

FIELD_MANAGER = "slipway-operator"
MODEL_INDEX = "model"
REQUIREMENT_INDEX = "requirement"
_FORBIDDEN_SECONDS = 15.0
_RESOURCES = {resource.kind: resource for resource in (RAYSERVICES, SECRETS)}


def by_model(deployment: dict[str, Any]) -> list[str]:
    """Index of Deployments: namespace/name of the TrainJob that spec.model names."""
    reference = deployment.get("spec", {}).get("model", {}).get("trainJob")
    return [f"{deployment['metadata']['namespace']}/{reference['name']}"] if reference else []


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


class DeploymentReconciler:
    """Brings one Deployment a step closer to what it says."""

    def __init__(
        self,
        client: Client,
        caches: Caches,
        reports: ServingReports,
        recorder: EventRecorder,
        expectations: Expectations,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._caches = caches
        self._reports = reports
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
        decision = decide(self._observe(key, deployment), self._settings, self._clock())
        try:
            for child in decision.apply:
                await self._apply(key, child)
        except Forbidden as error:
            return await self._tell_forbidden(key, deployment, error)
        for child in decision.delete:
            await self._delete(key, child)
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
        jobs = {name: self._caches.eval_jobs.get(Key(key.namespace, name)) for name in names}
        return Observed(
            deployment=deployment,
            ray_service=found if ours else None,
            foreign_ray_service=found is not None and not ours,
            ray_operator_missing=self._caches.ray_services_missing(),
            train_job=self._caches.train_jobs.get(Key(key.namespace, reference["name"])) if reference else None,
            eval_jobs={name: job for name, job in jobs.items() if job is not None},
            tallies=self._reports.tallies(uid),
        )

    async def _apply(self, key: Key, child: dict[str, Any]) -> None:
        resource = _RESOURCES[child["kind"]]
        written = await self._client.apply(resource, child, field_manager=FIELD_MANAGER)
        if resource is RAYSERVICES:
            self._expectations.wrote(key, RAYSERVICES, written)

    async def _delete(self, key: Key, obj: dict[str, Any]) -> None:
        resource: Resource = _RESOURCES[obj["kind"]]
        namespace, name = key_of(obj)
        try:
            await self._client.delete(resource, namespace, name, uid=uid_of(obj) or None)
        except NotFound:
            return
        self._expectations.deleted(key, resource, obj)

    async def _tell_forbidden(self, key: Key, deployment: dict[str, Any], error: Forbidden) -> Outcome:
        message = (
            f"refused in namespace {key.namespace}: {error.message}. If the operator lacks a right there, add the "
            "namespace to the chart's watch.namespaces; serving starts by itself then"
        )
        draft = Draft(deployment, self._clock())
        draft.set(c.AVAILABLE, "False", c.FORBIDDEN, message)
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
