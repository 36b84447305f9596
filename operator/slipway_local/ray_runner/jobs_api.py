"""Ray's Jobs REST API (https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html), as far as
the runner uses it. Every request carries the token and has a deadline. Nothing is retried here.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import aiohttp

from slipway_local.ray_runner.errors import RayUnavailable, SubmissionRefused

TERMINAL = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What Ray knows about a job. Times in milliseconds since the epoch."""

    job_id: str
    status: str
    message: str = ""
    start_time: int | None = None
    end_time: int | None = None
    exit_code: int | None = None
    metadata: dict[str, str] | None = None

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class Machine:
    """What Ray found on this machine. Memory in bytes."""

    cpus: Decimal
    gpus: Decimal
    memory: Decimal


class JobsApi:
    """A client of one Ray head. Close it after use."""

    def __init__(self, url: str, token: str, *, timeout: float = 10.0) -> None:
        """`url` is the dashboard's; `timeout` in seconds bounds each request."""
        self._url = url
        # trust_env stays off: a proxy has no business between two processes of one machine.
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"}, timeout=aiohttp.ClientTimeout(total=timeout)
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()

    async def ping(self) -> None:
        """Raises RayUnavailable unless the dashboard answers."""
        await self._request("GET", "/api/version")

    async def machine(self) -> Machine | None:
        """The resources of the head's node, or None while it has not come up."""
        status, body = await self._request("GET", "/nodes?view=summary")
        nodes = body["data"]["summary"] if status == 200 and isinstance(body, dict) else []
        for node in nodes:
            raylet = node.get("raylet") or {}
            found = raylet.get("resourcesTotal") or {}
            if raylet.get("state") == "ALIVE" and raylet.get("isHeadNode") and found:
                return Machine(
                    Decimal(str(found.get("CPU", 0))),
                    Decimal(str(found.get("GPU", 0))),
                    Decimal(int(found.get("memory", 0))),
                )
        return None

    async def submit(
        self,
        job_id: str,
        *,
        entrypoint: str,
        runtime_env: dict[str, Any],
        metadata: dict[str, str],
        num_gpus: float = 0,
    ) -> None:
        """Starts a job. Raises SubmissionRefused; after RayUnavailable ask `info` whether it was started."""
        body = {
            "submission_id": job_id,
            "entrypoint": entrypoint,
            "runtime_env": runtime_env,
            "metadata": metadata,
            **({"entrypoint_num_gpus": num_gpus} if num_gpus else {}),
        }
        status, answer = await self._request("POST", "/api/jobs/", body)
        if status != 200:
            # Ray answers with a traceback; its last line says what was wrong.
            lines = [line for line in str(answer).strip().splitlines() if line.strip()] or [f"HTTP {status}"]
            raise SubmissionRefused(lines[-1][:2000])

    async def wake_agent(self) -> None:
        """Makes Ray start what takes jobs on the node, which it otherwise does with the first job (about a second).

        Nothing shows less expensively that jobs are taken: a job that is refused by the last check before it exists.
        Raises RayUnavailable while the agent is not up.
        """
        body = {"entrypoint": "true", "entrypoint_label_selector": {"not a label": "not a value!"}}
        status, answer = await self._request("POST", "/api/jobs/", body)
        if "No available agent" in str(answer) or "label" not in str(answer):
            raise RayUnavailable(f"the job agent does not answer: HTTP {status}: {str(answer)[-300:]}")

    async def info(self, job_id: str) -> JobInfo | None:
        """The job, or None when Ray does not know it."""
        status, body = await self._request("GET", f"/api/jobs/{quote(job_id, safe='')}")
        if status == 404:
            return None
        if status != 200 or not isinstance(body, dict):
            raise RayUnavailable(f"GET job {job_id}: HTTP {status}: {str(body)[:500]}")
        return JobInfo(
            job_id=job_id,
            status=str(body["status"]),
            message=str(body.get("message") or ""),
            start_time=body.get("start_time"),
            end_time=body.get("end_time"),
            exit_code=body.get("driver_exit_code"),
            metadata=body.get("metadata") or {},
        )

    async def stop(self, job_id: str) -> None:
        """Asks Ray to end the job: SIGTERM, RAY_JOB_STOP_WAIT_TIME_S seconds, SIGKILL. Returns at once."""
        status, body = await self._request("POST", f"/api/jobs/{quote(job_id, safe='')}/stop")
        if status not in (200, 404):
            raise RayUnavailable(f"stop job {job_id}: HTTP {status}: {str(body)[-500:]}")

    async def forget(self, job_id: str) -> None:
        """Removes an ended job from Ray's memory; nothing happens when it is not there or still runs."""
        await self._request("DELETE", f"/api/jobs/{quote(job_id, safe='')}")

    async def _request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        try:
            async with self._session.request(method, self._url + path, json=body) as response:
                if response.content_type == "application/json":
                    return response.status, await response.json()
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise RayUnavailable(f"{method} {self._url}{path}: {type(error).__name__}: {error}") from error
