"""What the runner remembers of one RayJob between reconciles. All of it can be found out again after a restart."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from slipway_local.ray_runner import status as st
from slipway_local.ray_runner.admission import Waiting
from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.follow import Follower
from slipway_local.ray_runner.resources import Resources
from slipway_local.ray_runner.spec import MANAGED_BY_US, RayJobRequest
from slipway_operator.kube.resource import Json, Key

FINALIZER = "ray.io/rayjob-finalizer"
_DEFAULT_STOP_WAIT = 3.0  # Ray's own
_STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"


@dataclass
class Job:
    """One RayJob, by UID."""

    key: Key
    uid: str
    generation: int = -1
    """The generation that `request` or `invalid` was read from."""
    request: RayJobRequest | None = None
    invalid: InvalidSpec | None = None
    priority: int = 0
    not_before: datetime | None = None
    """A Secret is missing: it does not queue until then."""
    held: Resources | None = None
    """Reserved for it."""
    ended: set[str] = field(default_factory=set)
    """Ids of runs of which no process is left."""
    lost: str = ""
    """Why the Ray that ran it is no more."""
    follower: Follower | None = None

    def next_id(self) -> str:
        """The id of the run to start: a function of the object, so that every life of the runner finds the same.

        A change of the spec (resuming is one) makes it another run; Ray never takes an id twice.
        """
        asked = self.request.job_id if self.request is not None else None
        first = asked or f"{self.key.name[:64]}-{self.uid[:8]}"
        return first if self.generation <= 1 else f"{first}-{self.generation}"

    def stop_wait(self) -> float:
        """Seconds between Ray's SIGTERM and its SIGKILL."""
        if self.request is None:
            return _DEFAULT_STOP_WAIT
        named = {variable.name: variable.value for variable in self.request.head.env}
        named.update(self.request.runtime_env.get("env_vars") or {})
        try:
            return float(int(named[_STOP_WAIT_VARIABLE]))
        except (KeyError, ValueError):
            return _DEFAULT_STOP_WAIT

    def pump(self) -> None:
        """Copies what the job has written so far."""
        if self.follower is not None:
            self.follower.pump()


def managed(rayjob: Json) -> bool:
    """Whether KubeRay, and so this runner, would take this RayJob."""
    return str((rayjob.get("spec") or {}).get("managedBy") or "") in MANAGED_BY_US


def status_of(rayjob: Json) -> dict[str, Any]:
    """The status; {} for a new one."""
    return rayjob.get("status") or {}


def job_id_of(rayjob: Json) -> str:
    """The id of its current or last run, "" when there is none."""
    return str(status_of(rayjob).get("jobId") or "")


def candidate(rayjob: Json, job: Job, capacity: Resources, now: datetime) -> Waiting | None:
    """The job as one that queues for resources; None for one that does not."""
    request = job.request
    if request is None or job.invalid is not None or job.held is not None or job_id_of(rayjob):
        return None
    if rayjob["metadata"].get("deletionTimestamp") or request.suspend:
        return None
    if st.deployment_status(status_of(rayjob)) in (*st.FINISHED, st.SUSPENDING):
        return None
    if (job.not_before is not None and job.not_before > now) or not request.need.fits(capacity):
        return None
    created = str(rayjob["metadata"].get("creationTimestamp") or "")
    return Waiting(job.key.namespace, job.key.name, job.uid, created, job.priority, request.need)
