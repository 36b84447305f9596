"""The control loop: RayJob objects in, jobs on the local Ray and KubeRay's status fields out.

Level-triggered: each reconcile looks at the object, at Ray and at the machine's processes, and does the next thing.
What must not be done twice is written down first: a run's id goes into the status before Ray hears of it, so that after
a crash in between Ray is asked whether it knows that id, and what has run once is never run again.

Resources are held from admission until every process of the run is gone, whatever Ray says about it meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from slipway_local.ray_runner import status as st
from slipway_local.ray_runner.admission import Waiting, refuse_impossible
from slipway_local.ray_runner.errors import InvalidSpec, MissingReference, RayUnavailable, SubmissionRefused
from slipway_local.ray_runner.follow import Follower
from slipway_local.ray_runner.job import FINALIZER, Job, candidate, job_id_of, managed, status_of
from slipway_local.ray_runner.jobs_api import JobInfo
from slipway_local.ray_runner.keeper import RayKeeper
from slipway_local.ray_runner.lookup import Lookup
from slipway_local.ray_runner.resources import Resources
from slipway_local.ray_runner.room import Room
from slipway_local.ray_runner.runs import Runs, is_of
from slipway_local.ray_runner.spec import read_rayjob
from slipway_local.ray_runner.translate import Launch
from slipway_operator.kube.client import Client
from slipway_operator.kube.controller import Controller
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.expectations import Expectations
from slipway_operator.kube.outcomes import Done, Outcome, RequeueAfter
from slipway_operator.kube.queue import WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import RAYJOBS, Json, Key, key_of, uid_of, version_of
from slipway_operator.kube.store import Store

log = logging.getLogger(__name__)

_RETRY_REFERENCE = 2.0  # seconds between looks for a Secret that is missing
_SAFETY_NET = 30.0  # a waiting job is looked at so often even if nothing wakes it
_CHECK_RUNNING = 2.0  # the same for a running one
_WORKERS = 16  # a worker may wait for a job to stop; others must not wait with it


class Runner:
    """Runs the RayJobs of one API server on one local Ray."""

    def __init__(
        self,
        client: Client,
        keeper: RayKeeper,
        *,
        runs: Runs,
        room: Room,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._lookup = Lookup(client)
        self._keeper = keeper
        self._runs = runs
        self._now = now
        self._room = room
        self._jobs: dict[str, Job] = {}
        self._swept = False
        self._knowing = asyncio.Lock()
        self._store = Store(RAYJOBS)
        self._reflector = Reflector(client, self._store)
        self._queue = WorkQueue("rayjobs", max_delay=10.0)
        self._written = Expectations("rayjobs", self._store)
        self._controller = Controller(
            "rayjobs", self._queue, self._reconcile, workers=_WORKERS, timeout=120.0, hold=self._written.hold
        )
        self._controller.watches(self._reflector)
        room.join(self)
        keeper.on_up.append(self._wake_all)
        keeper.on_lost.append(self._lose)

    @property
    def reflector(self) -> Reflector:
        """The watch that it lives on."""
        return self._reflector

    @property
    def controller(self) -> Controller:
        """Its workers."""
        return self._controller

    # -- a claimant of the machine -----------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Brings what is known of the jobs up to date."""
        for rayjob in self._store.list():
            if managed(rayjob):
                await self._known(rayjob)

    def waiting(self, now: datetime, capacity: Resources) -> list[Waiting]:
        """The jobs that queue."""
        found = []
        for rayjob in self._store.list():
            job = self._jobs.get(uid_of(rayjob))
            if job is not None and managed(rayjob):
                found.append(candidate(rayjob, job, capacity, now))
        return [one for one in found if one is not None]

    def held(self) -> list[Resources]:
        """What running jobs hold."""
        return [job.held for job in self._jobs.values() if job.held is not None]

    # -- reconcile -------------------------------------------------------------------------------------------------

    async def _reconcile(self, key: Key) -> Outcome:
        await self._sweep()
        rayjob = self._store.get(key)
        if rayjob is None:
            self._forget(key)
            return Done()
        if not managed(rayjob):
            return Done()
        job = await self._known(rayjob)
        try:
            return await self._step(job, rayjob)
        except RayUnavailable as error:
            log.info("Ray does not answer: %s", error)
            return RequeueAfter(1.0)

    async def _step(self, job: Job, rayjob: Json) -> Outcome:
        state = st.deployment_status(status_of(rayjob))
        if rayjob["metadata"].get("deletionTimestamp"):
            return await self._delete(job, rayjob)
        if state in st.FINISHED:
            return await self._finished(job, rayjob)
        if state == st.SUSPENDING or (job.request is not None and job.request.suspend):
            return await self._suspend(job, rayjob)
        if job_id_of(rayjob):
            return await self._run(job, rayjob)
        return await self._wait(job, rayjob)

    async def _known(self, rayjob: Json) -> Job:
        """What is known of a RayJob, brought up to date with its spec and with what it already holds."""
        uid, generation = uid_of(rayjob), int(rayjob["metadata"].get("generation") or 0)
        async with self._knowing:
            job = self._jobs.setdefault(uid, Job(key_of(rayjob), uid))
            if job.generation != generation:
                try:
                    request = read_rayjob(rayjob)
                    job.priority = await self._lookup.priority(request.priority_class)
                    job.request, job.invalid = request, None
                except InvalidSpec as error:
                    job.invalid = error
                job.generation = generation
        job_id = job_id_of(rayjob)
        finished = st.deployment_status(status_of(rayjob)) in st.FINISHED
        if job_id and not finished and job_id not in job.ended and job.held is None:
            # Admitted by an earlier life of this runner.
            job.held = job.request.need if job.request is not None else Resources()
        return job

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def _wait(self, job: Job, rayjob: Json) -> Outcome:
        """Admits the job and starts it, or says in its status what it waits for."""
        status, now = status_of(rayjob), self._now()
        if st.deployment_status(status) == st.VALIDATION_FAILED and status.get("observedGeneration") == job.generation:
            return Done()
        if job.not_before is not None and job.not_before > now:
            return RequeueAfter((job.not_before - now).total_seconds())
        try:
            if job.invalid is not None:
                raise job.invalid
            assert job.request is not None
            if self._keeper.head is None:
                await self._write(rayjob, st.waiting(status, self._keeper.problem))
                return RequeueAfter(_SAFETY_NET)  # and woken when Ray is up
            refuse_impossible(job.request.need, self._keeper.capacity)
            message = await self._queue_for(job, reserve=False)
            if message is None:
                launch = await self._runs.plan(job, rayjob, job.next_id())
                message = await self._queue_for(job, reserve=True)
        except InvalidSpec as error:
            await self._write(rayjob, st.invalid(status, str(error)))
            self._room_changed()
            return Done()
        except MissingReference as error:
            job.not_before = now + timedelta(seconds=_RETRY_REFERENCE)
            await self._write(rayjob, st.waiting(status, f"waiting: {error}"))
            self._room_changed()
            return RequeueAfter(_RETRY_REFERENCE)
        if message is not None:
            await self._write(rayjob, st.waiting(status, message))
            return RequeueAfter(_SAFETY_NET)
        return await self._start(job, rayjob, launch)

    async def _queue_for(self, job: Job, *, reserve: bool) -> str | None:
        """What the job still waits for; None when it may start, and then its resources are reserved if asked to."""
        message = await self._room.verdict(job.uid, self._now(), self._keeper.capacity)
        # No await from here on: what is decided and what is reserved belong together.
        if message is not None:
            return message
        if reserve:
            assert job.request is not None
            job.held = job.request.need
            self._room_changed()  # there is less for them now
        return None

    async def _start(self, job: Job, rayjob: Json, launch: Launch) -> Outcome:
        head = self._keeper.head
        try:
            if head is None:
                raise RayUnavailable(self._keeper.problem)
            self._runs.prepare(job, launch)
            rayjob = await self._with_finalizer(rayjob)
            status = st.admitted(
                status_of(rayjob),
                job_id=job.next_id(),
                cluster=f"{job.key.name}-{job.uid[:5]}",
                dashboard=head.url.removeprefix("http://"),
                now=self._now(),
            )
            rayjob = await self._write(rayjob, status)
        except BaseException:
            # If the id did get into the status, then the next look at the object reserves again. This key is not woken:
            # it comes back after its backoff.
            job.held = None
            self._room_changed(but=job.key)
            raise
        return await self._submit(job, rayjob, launch)

    async def _submit(self, job: Job, rayjob: Json, launch: Launch) -> Outcome:
        try:
            await self._runs.submit(job, job_id_of(rayjob), launch)
        except SubmissionRefused as error:
            return await self._fail(job, rayjob, st.SUBMISSION_FAILED, f"Ray refused the job: {error}")
        self._follow(job, job_id_of(rayjob))
        await self._write(rayjob, st.submitted(status_of(rayjob), None))
        return RequeueAfter(_CHECK_RUNNING)

    # -- running ---------------------------------------------------------------------------------------------------

    async def _run(self, job: Job, rayjob: Json) -> Outcome:
        status, job_id = status_of(rayjob), job_id_of(rayjob)
        if job.lost:
            return await self._lost(job, rayjob, job.lost)
        info = await self._runs.info(job_id)
        if info is None or not is_of(job, info):
            return await self._unknown(job, rayjob, info)
        self._follow(job, job_id)
        left = self._deadline_left(job, status)
        # STOPPED: by us, before a crash or a lost answer kept us from writing why.
        if left is not None and left <= 0 and (not info.terminal or info.status == "STOPPED"):
            assert job.request is not None
            await self._runs.end(job, job_id)
            message = f"the job was stopped, because activeDeadlineSeconds ({job.request.deadline} s) have passed"
            return await self._fail(job, rayjob, st.DEADLINE_EXCEEDED, message, job_status="STOPPED")
        if info.terminal:
            job.pump()
            rayjob = await self._write(rayjob, st.ended(status, info, self._now()))
            return await self._finished(job, rayjob)
        await self._write(rayjob, st.submitted(status, info))
        return RequeueAfter(_CHECK_RUNNING if left is None else min(_CHECK_RUNNING, left))

    async def _unknown(self, job: Job, rayjob: Json, info: JobInfo | None) -> Outcome:
        """Ray has no such job of ours: it never got there, or it was on a Ray that is gone, or the id is taken."""
        job_id = job_id_of(rayjob)
        if info is not None:
            message = f"Ray has run another job under the id {job_id}: use another jobId"
            return await self._fail(job, rayjob, st.SUBMISSION_FAILED, message)
        if not self._never_ran(job, rayjob):
            return await self._lost(job, rayjob, "the Ray head that ran this job is gone")
        try:
            if job.invalid is not None:
                raise job.invalid
            launch = await self._runs.plan(job, rayjob, job_id)
        except (InvalidSpec, MissingReference) as error:
            return await self._fail(job, rayjob, st.SUBMISSION_FAILED, str(error))
        self._runs.prepare(job, launch)
        return await self._submit(job, rayjob, launch)

    async def _lost(self, job: Job, rayjob: Json, why: str) -> Outcome:
        job.lost = ""
        if self._never_ran(job, rayjob):
            return RequeueAfter(1.0)  # nothing is lost: the next Ray gets it
        return await self._fail(job, rayjob, st.CLUSTER_LOST, why)

    def _never_ran(self, job: Job, rayjob: Json) -> bool:
        admitted_only = st.deployment_status(status_of(rayjob)) == st.INITIALIZING
        return admitted_only and not self._runs.was_started(job)

    async def _fail(self, job: Job, rayjob: Json, reason: str, message: str, *, job_status: str = "FAILED") -> Outcome:
        job.pump()
        status = st.failed(status_of(rayjob), reason, message, self._now(), job_status=job_status)
        return await self._finished(job, await self._write(rayjob, status))

    def _deadline_left(self, job: Job, status: st.Status) -> float | None:
        if job.request is None or job.request.deadline is None or not status.get("startTime"):
            return None
        end = st.parse_timestamp(status["startTime"]) + timedelta(seconds=job.request.deadline)
        return (end - self._now()).total_seconds()

    # -- ends ------------------------------------------------------------------------------------------------------

    async def _finished(self, job: Job, rayjob: Json) -> Outcome:
        status, job_id = status_of(rayjob), job_id_of(rayjob)
        if job_id and job.held is not None:
            await self._runs.wait_gone(job, job_id)
        self._release(job, job_id)
        ttl = job.request.ttl if job.request is not None else None
        if ttl is None or not status.get("endTime"):
            return Done()
        left = (st.parse_timestamp(status["endTime"]) + timedelta(seconds=ttl) - self._now()).total_seconds()
        if left > 0:
            return RequeueAfter(left)
        with contextlib.suppress(NotFound):
            await self._client.delete(RAYJOBS, job.key.namespace, job.key.name, uid=job.uid)
        return Done()

    async def _suspend(self, job: Job, rayjob: Json) -> Outcome:
        job_id = job_id_of(rayjob)
        if job_id:
            rayjob = await self._write(rayjob, st.suspending(status_of(rayjob)))
            await self._runs.end(job, job_id)
        job.pump()
        await self._write(rayjob, st.suspended(status_of(rayjob)))
        self._release(job, job_id)
        return Done()  # the write brings the key back; if it was resumed meanwhile, it queues then

    async def _delete(self, job: Job, rayjob: Json) -> Outcome:
        job_id = job_id_of(rayjob)
        finalizers = rayjob["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            return Done()
        if job_id and job_id not in job.ended:
            await self._runs.end(job, job_id)
        self._release(job, job_id)
        await self._runs.remove(job, job_id)
        patch = {"metadata": {"finalizers": [name for name in finalizers if name != FINALIZER]}}
        with contextlib.suppress(NotFound):
            await self._client.merge_patch(RAYJOBS, *job.key, patch, resource_version=version_of(rayjob))
        return Done()

    def _release(self, job: Job, job_id: str) -> None:
        job.lost = ""
        if job_id:
            job.ended.add(job_id)
        follower, job.follower = job.follower, None
        if follower is not None:
            follower.close()
        if job.held is not None:
            job.held = None
            self._room_changed()

    def _forget(self, key: Key) -> None:
        self._written.forget(key)
        for job in [job for job in self._jobs.values() if job.key == key]:
            del self._jobs[job.uid]
            self._release(job, "")
            self._room_changed()

    def _lose(self, why: str) -> None:
        for job in self._jobs.values():
            if job.held is not None:
                job.lost = f"the Ray head that ran this job died: {why}"
        self._wake_all()

    async def _sweep(self) -> None:
        """Once, when all RayJobs are known: what belongs to none of them is ended and removed."""
        if self._swept:
            return
        async with self._knowing:
            if not self._swept:
                mine = [obj for obj in self._store.list() if managed(obj)]
                living = [obj for obj in mine if st.deployment_status(status_of(obj)) not in st.FINISHED]
                await self._runs.sweep(map(job_id_of, living), map(self._runs.path_of, mine))
                self._swept = True

    # -- writing and waking ----------------------------------------------------------------------------------------

    async def _write(self, rayjob: Json, status: st.Status) -> Json:
        """Writes what has changed of the status; returns the object as it is then."""
        status = {**status, "observedGeneration": int(rayjob["metadata"].get("generation") or 0)}
        patch = st.changes(status_of(rayjob), status)
        if not patch:
            return rayjob
        return await self._patch(rayjob, {"status": patch}, "status")

    async def _with_finalizer(self, rayjob: Json) -> Json:
        finalizers = rayjob["metadata"].get("finalizers") or []
        if FINALIZER in finalizers:
            return rayjob
        return await self._patch(rayjob, {"metadata": {"finalizers": [*finalizers, FINALIZER]}}, None)

    async def _patch(self, rayjob: Json, patch: Json, subresource: str | None) -> Json:
        key = key_of(rayjob)
        answer = await self._client.merge_patch(
            RAYJOBS, *key, patch, subresource=subresource, resource_version=version_of(rayjob)
        )
        self._written.wrote(key, RAYJOBS, answer)
        return answer

    def _follow(self, job: Job, job_id: str) -> None:
        head = self._keeper.head
        if job.follower is None and head is not None:
            job.follower = Follower(
                run_dir=self._runs.directory(job),
                log=self._runs.log(job),
                session_dir=head.session_dir,
                job_id=job_id,
                owner=job.uid,
                wake=lambda: self._queue.add(job.key),
            )

    def _wake_all(self) -> None:
        for obj in self._store.list():
            self._queue.add(key_of(obj))

    def _room_changed(self, *, but: Key | None = None) -> None:
        self._room.changed(self, but)

    def wake_waiting(self, but: Key | None = None) -> None:
        """Makes the jobs that queue look again, all but one."""
        for obj in self._store.list():
            if not job_id_of(obj) and key_of(obj) != but:
                self._queue.add(key_of(obj))
