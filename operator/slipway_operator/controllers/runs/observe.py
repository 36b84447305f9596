"""Gathers what the caches show of an object's runs: its RayJobs, their newest report, the pods of the newest one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from slipway_operator.controllers.runs.observed import Observed
from slipway_operator.controllers.runs.testimony import PodTestimony
from slipway_operator.kube.resource import Key, at_least, controller_of, uid_of, version_of
from slipway_operator.kube.store import Store
from slipway_operator.kuberay import LABEL_ATTEMPT
from slipway_operator.reports import ReportStore

OWNER_INDEX = "owner"
CLUSTER_INDEX = "rayCluster"


def by_owner(obj: dict[str, Any]) -> list[str]:
    """Index of children: the UID of their controller."""
    owner = controller_of(obj)
    return [owner["uid"]] if owner else []


@dataclass(frozen=True)
class RunCaches:
    """Where runs are seen."""

    ray_jobs: Store
    ray_jobs_missing: Callable[[], bool]
    pods: Store
    testimony: PodTestimony


def observe_run(job: dict[str, Any], next_name: str, caches: RunCaches, reports: ReportStore) -> Observed:
    """The runs of `job`; `next_name`: of the RayJob that it would create next."""
    uid = uid_of(job)
    attempt, report = reports.latest(uid)
    observed = Observed(
        job=job,
        ray_jobs=caches.ray_jobs.by_index(OWNER_INDEX, uid),
        report=report,
        report_attempt=attempt,
        ray_operator_missing=caches.ray_jobs_missing(),
    )
    candidate = caches.ray_jobs.get(Key(job["metadata"]["namespace"], next_name))
    if candidate is not None and uid not in by_owner(candidate):
        observed = replace(observed, foreign_ray_job=candidate)
    return _with_pods(observed, caches)


def _with_pods(observed: Observed, caches: RunCaches) -> Observed:
    """Adds the pods of the newest RayJob's cluster."""
    ray_job = max(observed.ray_jobs, key=lambda r: int(r["metadata"]["labels"].get(LABEL_ATTEMPT, "0")), default={})
    cluster = (ray_job.get("status") or {}).get("rayClusterName")
    if not cluster:
        return observed
    address, pods = f"{ray_job['metadata']['namespace']}/{cluster}", caches.pods
    return replace(
        observed,
        pods=[*caches.testimony.of(address), *pods.by_index(CLUSTER_INDEX, address)],
        pods_current=at_least(pods.resource_version, version_of(ray_job)) is True,
    )
