"""Starts and ends runs: files, Ray's answer and processes, in the order in which a crash does no harm."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path

from slipway_local.processes import ProcessRef, marked, wait_gone
from slipway_local.processes import stop as stop_processes
from slipway_local.ray_runner.errors import RayUnavailable, SubmissionRefused
from slipway_local.ray_runner.job import Job
from slipway_local.ray_runner.jobs_api import JobInfo
from slipway_local.ray_runner.keeper import RayKeeper
from slipway_local.ray_runner.lookup import Lookup
from slipway_local.ray_runner.occupancy import occupying
from slipway_local.ray_runner.rundir import RunDirs, was_started
from slipway_local.ray_runner.translate import MARK, Launch, Place, references, translate
from slipway_operator.kube.resource import Json

UID_METADATA = "slipway.dev/uid"
NAME_METADATA = "slipway.dev/rayjob"
_STRAGGLER_GRACE = 1.0  # Ray ends the workers of an ended driver by itself within this many seconds
_STOP_MARGIN = 10.0  # for Ray to do what it was asked to


class Runs:
    """The runs of one state directory on the current Ray."""

    def __init__(self, state_dir: Path, keeper: RayKeeper, lookup: Lookup) -> None:
        self._keeper = keeper
        self._lookup = lookup
        self._dirs = RunDirs(state_dir)
        self._logs = state_dir / "logs"
        # Another control plane on this machine may use the same names.
        self._scope = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:12]

    def directory(self, job: Job) -> Path:
        """The run's directory."""
        return self._dirs.path(job.key.namespace, job.key.name, job.uid)

    def log(self, job: Job) -> Path:
        """Where the job's output is kept."""
        return self._logs / job.key.namespace / f"{job.key.name}.log"

    def was_started(self, job: Job) -> bool:
        """Whether the driver of the job's current run was ever started."""
        return was_started(self.directory(job))

    async def plan(self, job: Job, rayjob: Json, job_id: str) -> Launch:
        """What to start. Raises InvalidSpec or MissingReference."""
        assert job.request is not None
        objects = await self._lookup.objects(job.key.namespace, references(job.request))
        place = Place(self.directory(job), self._keeper.ray.bin_dir, self._mark(job_id), rayjob["metadata"])
        return translate(job.request, objects, place)

    def prepare(self, job: Job, launch: Launch) -> None:
        """Makes the run's directory anew."""
        self._dirs.create(self.directory(job), launch.directories, launch.files)

    async def submit(self, job: Job, job_id: str, launch: Launch) -> None:
        """Gives it to Ray; one that Ray has already is fine. Raises SubmissionRefused or RayUnavailable."""
        request = job.request
        assert request is not None
        api = self._keeper.api()
        try:
            await api.submit(
                job_id,
                entrypoint=launch.entrypoint,
                runtime_env=launch.runtime_env,
                metadata={**request.metadata, UID_METADATA: job.uid, NAME_METADATA: str(job.key)},
                num_gpus=float(max(request.entrypoint_gpus, request.head.resources.gpu)),
            )
        except SubmissionRefused:
            if not is_of(job, await api.info(job_id)):
                raise

    async def info(self, job_id: str) -> JobInfo | None:
        """What Ray knows of it. Raises RayUnavailable."""
        return await self._keeper.api().info(job_id)

    async def end(self, job: Job, job_id: str) -> None:
        """Stops a run as Ray does (SIGTERM, a while, SIGKILL), and returns when it is really gone.

        Raises RayUnavailable when Ray does not answer: ask again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + job.stop_wait() + _STOP_MARGIN
        while self._keeper.head is not None and loop.time() < deadline:
            info = await self.info(job_id)
            if info is None or info.terminal or not is_of(job, info):
                break
            await self._keeper.api().stop(job_id)
            await wait_gone(lambda: occupying(self._mark(job_id)), seconds=1.0)
            await asyncio.sleep(0.1)  # Ray hears of the end a moment later
        await self.wait_gone(job, job_id)

    async def wait_gone(self, job: Job, job_id: str) -> None:
        """Returns when no process of an ended run is left. What is left after a moment is killed."""
        mark = self._mark(job_id)
        if not await wait_gone(lambda: occupying(mark), seconds=_STRAGGLER_GRACE) and not await stop_processes(
            lambda: occupying(mark), grace=0.0
        ):
            raise RayUnavailable(f"processes of {job_id} cannot be ended")
        job.ended.add(job_id)

    async def remove(self, job: Job, job_id: str) -> None:
        """Removes everything of an ended run but its log."""
        self._dirs.remove(self.directory(job))
        if job_id and self._keeper.head is not None:
            await self._keeper.api().forget(job_id)

    async def sweep(self, living_ids: Iterable[str], directories: Iterable[Path]) -> None:
        """Ends runs of this state directory that are none of these, and removes directories that are none of these."""
        known = {self._mark(job_id) for job_id in living_ids}

        def strangers() -> list[ProcessRef]:
            found = marked(MARK).items()
            return [ref for ref, mark in found if mark.startswith(f"{self._scope}/") and mark not in known]

        await stop_processes(strangers, grace=0.0)
        self._dirs.remove_strangers(directories)

    def path_of(self, rayjob: Json) -> Path:
        """The run directory of a RayJob."""
        metadata = rayjob["metadata"]
        return self._dirs.path(metadata["namespace"], metadata["name"], metadata["uid"])

    def _mark(self, job_id: str) -> str:
        return f"{self._scope}/{job_id}"


def is_of(job: Job, info: JobInfo | None) -> bool:
    """Whether this is our run, not somebody else's of the same id."""
    return info is not None and (info.metadata or {}).get(UID_METADATA) == job.uid
