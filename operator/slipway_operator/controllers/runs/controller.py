"""Does what decide.py decided: applies, deletes, writes status once and only if it changed, records events.

Nothing is decided here, and children are written by children.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from slipway_api import conditions as c
from slipway_operator.controllers.runs.children import FIELD_MANAGER, Children
from slipway_operator.controllers.runs.decide import decide
from slipway_operator.controllers.runs.kind import RunKind
from slipway_operator.controllers.runs.observe import RunCaches, observe_run
from slipway_operator.controllers.runs.observed import Decision, Observed, Settings
from slipway_operator.controllers.runs.status import StatusDraft
from slipway_operator.kube.client import Client
from slipway_operator.kube.discovery import Discovery
from slipway_operator.kube.errors import Forbidden
from slipway_operator.kube.events import EventRecorder
from slipway_operator.kube.expectations import Expectations
from slipway_operator.kube.outcomes import Done, Outcome, RequeueAfter
from slipway_operator.kube.resource import EVALJOBS, RAYJOBS, TRAINJOBS, Key, uid_of
from slipway_operator.kube.store import Store
from slipway_operator.reports import ReportStore

REFERENCE_INDEX = "trainJob"
KUEUE = "kueue.x-k8s.io"

_FORBIDDEN_SECONDS = 15.0  # rights are given by people
_CACHED = (RAYJOBS, TRAINJOBS, EVALJOBS)  # of what is in no cache, nothing can be waited for


def by_reference(kind: RunKind[Any]) -> Callable[[dict[str, Any]], list[str]]:
    """Index of jobs: namespace/name of the TrainJobs whose models they need."""
    return lambda job: [f"{job['metadata']['namespace']}/{name}" for name in kind.references(job)]


@dataclass(frozen=True)
class Caches:
    """What the controller reads."""

    jobs: Store  # of the kind
    train_jobs: Store
    runs: RunCaches


class RunReconciler:
    """Brings one job a step closer to what it says."""

    def __init__(
        self,
        kind: RunKind[Any],
        client: Client,
        caches: Caches,
        reports: ReportStore,
        recorder: EventRecorder,
        expectations: Expectations,
        discovery: Discovery,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kind = kind
        self._client = client
        self._children = Children(client, expectations, _CACHED)
        self._caches = caches
        self._reports = reports
        self._recorder = recorder
        self._expectations = expectations
        self._discovery = discovery
        self._settings = settings
        self._clock = clock

    async def reconcile(self, key: Key) -> Outcome:
        """Observe, decide, do."""
        job = self._caches.jobs.get(key)
        if job is None:
            self._expectations.forget(key)
            return Done()
        await self._acknowledge(job)
        decision = decide(self._kind, await self._observe(job), self._settings, self._clock())
        try:
            for child in decision.apply:
                await self._children.apply(key, child)
            for patch in decision.patch:
                await self._children.patch(key, patch)
        except Forbidden as error:
            return await self._tell_forbidden(key, job, error)
        for child in decision.delete:
            await self._children.delete(key, child)
        await self._write_status(key, job, decision)
        for event in decision.events:
            self._recorder.event(job, event.type, event.reason, event.message)
        if decision.delete_job:
            await self._children.delete(key, job)
        return RequeueAfter(decision.requeue_after) if decision.requeue_after is not None else Done()

    async def _observe(self, job: dict[str, Any]) -> Observed:
        metadata = job["metadata"]
        records = (job.get("status") or {}).get("attempts", [])
        next_name = self._kind.child_name(metadata["name"], (records[-1]["number"] if records else 0) + 1)
        observed = replace(
            observe_run(job, next_name, self._caches.runs, self._reports),
            train_jobs=self._referred(job),
            made_jobs=self._made(job),
        )
        if job["spec"].get("queue") and not observed.ray_jobs:
            observed = replace(observed, kueue_missing=not await self._discovery.serves(KUEUE))
        return observed

    def _referred(self, job: dict[str, Any]) -> dict[str, dict[str, Any]]:
        namespace = job["metadata"]["namespace"]
        found = {name: self._caches.train_jobs.get(Key(namespace, name)) for name in self._kind.references(job)}
        return {name: train_job for name, train_job in found.items() if train_job is not None}

    def _made(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        namespace = job["metadata"]["namespace"]
        stores = (self._caches.train_jobs, self._caches.jobs)
        found = [store.get(Key(namespace, name)) for name in self._kind.makes(job) for store in stores]
        return [made for made in found if made is not None]

    async def _acknowledge(self, job: dict[str, Any]) -> None:
        """What the stored status says of ends is durable: tell the runs that wait to hear it."""
        ended = [r["number"] for r in (job.get("status") or {}).get("attempts", []) if r.get("outcome")]
        if ended:
            await self._reports.mark_ended(uid_of(job), ended[-1])

    async def _tell_forbidden(self, key: Key, job: dict[str, Any], error: Forbidden) -> Outcome:
        """Our rights end before this namespace: say so where the user looks, and try again without hurry."""
        message = (
            f"refused in namespace {key.namespace}: {error.message}. If the operator lacks a right there, add the "
            "namespace to the chart's watch.namespaces; the job goes on by itself then"
        )
        draft = StatusDraft.of(job, self._clock())
        draft.set(c.RUNNING, "False", c.FORBIDDEN, message)
        await self._write_status(key, job, Decision(status=draft.finish()))
        self._recorder.event(job, "Warning", c.FORBIDDEN, message)
        return RequeueAfter(_FORBIDDEN_SECONDS)

    async def _write_status(self, key: Key, job: dict[str, Any], decision: Decision) -> None:
        if decision.status == job.get("status"):
            return
        metadata = job["metadata"]
        body = {
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                # With a version, apply refuses to overwrite what this cache has not seen: 409, and a fresh look.
                "resourceVersion": metadata["resourceVersion"],
            },
            "status": decision.status,
        }
        written = await self._client.apply_status(self._kind.resource, body, field_manager=FIELD_MANAGER)
        self._expectations.wrote(key, self._kind.resource, written)
        if decision.ended_attempt is not None:
            await self._reports.mark_ended(metadata["uid"], decision.ended_attempt)
