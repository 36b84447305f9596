"""Plays KubeRay and the runs: each RayJob goes to Running, reports, and ends, whatever the API server is going through.

It watches over the runs as well: what must never happen is kept in `violations`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from slipway_api.run import RUN_ENV, report_token
from slipway_operator.kube.errors import KubeError, NotFound
from slipway_operator.kube.resource import EVALJOBS, RAYJOBS, TRAINJOBS

from .cluster import RUN_KEY, Cluster

MODEL = {"uri": "file:///m", "digest": "sha256:0", "parameters": 1}
END = {"outcome": "Succeeded", "reason": "ModelSaved", "message": "mimicked", "model": MODEL}
EVALUATED = {
    "outcome": "Succeeded",
    "reason": "ResultsSaved",
    "message": "mimicked",
    "results": {"uri": "file:///r", "report": "file:///r/report.html"},
}
EVALUATION = {
    "progress": {"done": 9, "total": 9},
    "suites": [{"name": "held-out", "state": "Succeeded", "examples": 9, "done": 9}],
    "metrics": [{"suite": "held-out", "metric": "perplexity", "value": "9", "higherIsBetter": False, "count": 9}],
    "model": {"uri": MODEL["uri"], "digest": MODEL["digest"]},
}
_FAILS_FIRST = "retry"  # the name of a job whose first attempt dies
_EXIT = "Job entrypoint command failed with exit code 75, last available logs (truncated to 20,000 chars):\n"


class _Gone(Exception):  # noqa: N818
    """The RayJob of this run does not exist any more."""


@dataclass
class Runs:
    """The runs of one namespace."""

    cluster: Cluster
    reports: str  # host:port
    seconds: float = 1.0
    """How long a run trains."""
    violations: list[str] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    """UID of every RayJob there was, and its name."""
    _playing: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _owners: dict[str, dict[str, Any]] = field(default_factory=dict)
    _ending: set[str] = field(default_factory=set)
    """What has begun to say how it ended: the operator may act on that before this process hears back."""

    async def run(self) -> None:
        """Until cancelled."""
        async with aiohttp.ClientSession() as http:
            try:
                while True:
                    with contextlib.suppress(KubeError):
                        await self._look(http)
                    await asyncio.sleep(0.1)
            finally:
                for task in self._playing.values():
                    task.cancel()

    async def _look(self, http: aiohttp.ClientSession) -> None:
        ray_jobs = {one["metadata"]["uid"]: one for one in await self.cluster.all(RAYJOBS)}
        kinds = [await self.cluster.all(kind) for kind in (TRAINJOBS, EVALJOBS)]
        jobs = {one["metadata"]["uid"] for kind in kinds for one in kind}
        for uid, ray_job in ray_jobs.items():
            if uid not in self.seen:
                self.seen[uid] = ray_job["metadata"]["name"]
                self._owners[uid] = ray_job["metadata"]["ownerReferences"][0]
                self._playing[uid] = asyncio.create_task(self._play(http, ray_job))
        playing = [uid for uid, task in self._playing.items() if not task.done() and uid not in self._ending]
        for uid in playing:
            if uid not in ray_jobs and self._owners[uid]["uid"] in jobs:
                self.violations.append(f"RayJob {self.seen[uid]} was deleted while it ran")
                self._playing[uid].cancel()
        alive = [self._owners[uid]["uid"] for uid in playing if uid in ray_jobs]
        for owner in {one for one in alive if alive.count(one) > 1}:
            self.violations.append(f"two runs of TrainJob {owner} are alive")

    async def _play(self, http: aiohttp.ClientSession, ray_job: dict[str, Any]) -> None:
        with contextlib.suppress(_Gone):
            await self._set(ray_job, jobStatus="RUNNING", jobDeploymentStatus="Running")
            head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
            run = json.loads(next(e["value"] for e in head["env"] if e["name"] == RUN_ENV))
            training = run["kind"] == "trainjobs"
            if training:
                await self._report(http, run, 1, stage="Training", progress={"step": 5, "steps": 10, "loss": "2.5"})
            await asyncio.sleep(self.seconds)
            self._ending.add(ray_job["metadata"]["uid"])
            if run["attempt"] == 1 and _FAILS_FIRST in run["name"]:
                await self._set(
                    ray_job, jobStatus="FAILED", jobDeploymentStatus="Failed", reason="AppFailed", message=_EXIT
                )
                return
            if training:
                await self._report(http, run, 2, stage="Ended", end=END)
            else:
                await self._report(http, run, 2, stage="Ended", evaluation=EVALUATION, end=EVALUATED)
            await self._set(ray_job, jobStatus="SUCCEEDED", jobDeploymentStatus="Complete")

    async def _set(self, ray_job: dict[str, Any], **status: Any) -> None:
        """Of this RayJob and of no later one of its name: a patch of the status does not heed a uid, but a version."""
        metadata, client = ray_job["metadata"], self.cluster.client
        namespace, name = metadata["namespace"], metadata["name"]
        while True:
            try:
                current = await client.get(RAYJOBS, namespace, name)
                if current["metadata"]["uid"] != metadata["uid"]:
                    raise _Gone
                version = current["metadata"]["resourceVersion"]
                await client.merge_patch(
                    RAYJOBS, namespace, name, {"status": status}, subresource="status", resource_version=version
                )
            except NotFound as error:
                raise _Gone from error
            except KubeError:
                await asyncio.sleep(0.1)
            else:
                return

    async def _report(self, http: aiohttp.ClientSession, run: dict[str, Any], sequence: int, **body: Any) -> None:
        url = f"http://{self.reports}/v1/runs/{run['kind']}/{run['namespace']}/{run['name']}/{run['uid']}/{run['attempt']}"
        headers = {"Authorization": f"Bearer {report_token(RUN_KEY, run['uid'], run['attempt'])}"}
        message = {"sequence": sequence, "time": "2026-01-01T00:00:00Z", **body}
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.post(url, json=message, headers=headers) as answer:
                    if answer.status == 200:
                        return
                    if answer.status == 410:  # this attempt is over
                        raise _Gone
            await asyncio.sleep(0.1)
