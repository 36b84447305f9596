"""The control loop: RayService objects in, applications on the local Ray Serve and KubeRay's status fields out.

Level-triggered: each reconcile looks at the object, at what Serve has accepted and at what Serve says, and does the
next thing. A service keeps its resources until none of its replicas is left; a change that needs more waits in the
queue while the old state goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from slipway_local.ray_runner import service_status as st
from slipway_local.ray_runner.admission import Waiting, refuse_impossible
from slipway_local.ray_runner.errors import ConfigRefused, InvalidSpec, MissingReference, RayUnavailable
from slipway_local.ray_runner.keeper import RayKeeper
from slipway_local.ray_runner.lookup import Lookup
from slipway_local.ray_runner.resources import Resources, largest
from slipway_local.ray_runner.room import Room
from slipway_local.ray_runner.serve_config import PATH
from slipway_local.ray_runner.service import FINALIZER, URL_ANNOTATION, Service, candidate
from slipway_local.ray_runner.service_spec import CLUSTER, keeps_cluster, read_rayservice
from slipway_local.ray_runner.service_translate import ServicePlan
from slipway_local.ray_runner.services import Services
from slipway_local.ray_runner.spec import MANAGED_BY_US
from slipway_local.ray_runner.status import Status, changes
from slipway_operator.kube.client import Client
from slipway_operator.kube.controller import Controller
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.expectations import Expectations
from slipway_operator.kube.outcomes import Done, Outcome, RequeueAfter
from slipway_operator.kube.queue import WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import RAYSERVICES, Json, Key, key_of, uid_of, version_of
from slipway_operator.kube.store import Store

log = logging.getLogger(__name__)

_RETRY_REFERENCE = 2.0  # seconds between looks for a Secret that is missing
_SAFETY_NET = 30.0  # a waiting service is looked at so often even if nothing wakes it
_CHANGING = 0.5  # between looks while something is being deployed or removed
_STEADY = 2.0  # the same for one that runs
_WORKERS = 4


class ServiceRunner:
    """Runs the RayServices of one API server on one local Ray."""

    def __init__(
        self,
        client: Client,
        keeper: RayKeeper,
        *,
        services: Services,
        room: Room,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._lookup = Lookup(client)
        self._keeper = keeper
        self._serve = services
        self._room = room
        self._now = now
        self._services: dict[str, Service] = {}
        self._swept = False
        self._knowing = asyncio.Lock()
        self._store = Store(RAYSERVICES)
        self._reflector = Reflector(client, self._store)
        self._queue = WorkQueue("rayservices", max_delay=10.0)
        self._written = Expectations("rayservices", self._store)
        self._controller = Controller(
            "rayservices", self._queue, self._reconcile, workers=_WORKERS, timeout=150.0, hold=self._written.hold
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
        """Brings what is known of the services up to date."""
        await self._sweep()
        for rayservice in self._store.list():
            if _managed(rayservice):
                await self._known(rayservice)

    def waiting(self, now: datetime, capacity: Resources) -> list[Waiting]:
        """The services that queue, for the first time or for more."""
        found = []
        for rayservice in self._store.list():
            service = self._services.get(uid_of(rayservice))
            if service is not None and _managed(rayservice):
                found.append(candidate(rayservice, service, capacity, now))
        return [one for one in found if one is not None]

    def held(self) -> list[Resources]:
        """What the services hold."""
        return [service.held for service in self._services.values() if service.held is not None]

    def wake_waiting(self, but: Key | None = None) -> None:
        """Makes the services that queue look again, all but one."""
        for rayservice in self._store.list():
            service = self._services.get(uid_of(rayservice))
            if key_of(rayservice) != but and (
                service is None or service.held is None or service.lacks() != Resources()
            ):
                self._queue.add(key_of(rayservice))

    # -- reconcile -------------------------------------------------------------------------------------------------

    async def _reconcile(self, key: Key) -> Outcome:
        await self._sweep()
        rayservice = self._store.get(key)
        if rayservice is None:
            self._forget(key)
            return Done()
        if not _managed(rayservice):
            return Done()
        service = await self._known(rayservice)
        try:
            if rayservice["metadata"].get("deletionTimestamp"):
                return await self._delete(service, rayservice)
            return await self._run(service, rayservice)
        except InvalidSpec as error:
            return await self._refuse(service, rayservice, error)
        except RayUnavailable as error:
            log.info("Ray does not answer: %s", error)
            return RequeueAfter(1.0)

    async def _known(self, rayservice: Json) -> Service:
        """What is known of a RayService, brought up to date with its spec and with what it already holds."""
        uid, generation = uid_of(rayservice), int(rayservice["metadata"].get("generation") or 0)
        async with self._knowing:
            service = self._services.setdefault(uid, Service(key_of(rayservice), uid))
            record = self._serve.accepted(uid)
            if service.held is None and record is not None:
                service.held, service.up = record.need, record.up  # of an earlier life of this runner
            if service.generation != generation:
                try:
                    request = read_rayservice(self._with_cluster(rayservice))
                    service.priority = await self._lookup.priority(request.priority_class)
                    service.request, service.invalid = request, None
                except InvalidSpec as error:
                    service.invalid = error
                service.generation, service.refused = generation, ""
        return service

    def _with_cluster(self, rayservice: Json) -> Json:
        """With the cluster that it keeps, if its upgrade strategy is that no other takes its place."""
        record = self._serve.record(uid_of(rayservice))
        if record is None or not record.cluster or not keeps_cluster(rayservice):
            return rayservice
        return {**rayservice, "spec": {**rayservice["spec"], "rayClusterConfig": record.cluster}}

    # -- running ---------------------------------------------------------------------------------------------------

    async def _run(self, service: Service, rayservice: Json) -> Outcome:
        if service.invalid is not None:
            raise service.invalid
        if service.refused:
            raise InvalidSpec(PATH, service.refused)
        assert service.request is not None
        if self._keeper.head is None:
            await self._waits(service, rayservice, self._keeper.problem)
            return RequeueAfter(_SAFETY_NET)  # and woken when Ray is up
        refuse_impossible(
            service.request.need, self._keeper.capacity, what="service", path=f"{CLUSTER}.workerGroupSpecs"
        )
        rayservice, waits = await self._bring_up_to_date(service, rayservice)
        if self._serve.accepted(service.uid) is not None:
            return await self._observe(service, rayservice, waits)
        await self._waits(service, rayservice, waits)
        return RequeueAfter(_SAFETY_NET if service.not_before is None else _RETRY_REFERENCE)

    async def _bring_up_to_date(self, service: Service, rayservice: Json) -> tuple[Json, str]:
        """Makes what is asked for what runs, or says what that waits for; with the object as it is then."""
        if service.not_before is not None and service.not_before <= self._now():
            service.not_before = None
        waits = await self._room_for(service, reserve=False)
        if waits is not None:
            return rayservice, waits
        try:
            plan = await self._serve.plan(service, rayservice)
        except MissingReference as error:
            service.not_before = self._now() + timedelta(seconds=_RETRY_REFERENCE)
            self._room.changed(self, service.key)  # it does not queue until then
            return rayservice, f"waiting: {error}"
        waits = await self._room_for(service, reserve=True)
        if waits is not None:
            return rayservice, waits
        self._serve.refresh_files(service, plan)
        rayservice = await self._with_finalizer(rayservice)
        await self._apply(service, rayservice, plan)
        return rayservice, ""

    async def _room_for(self, service: Service, *, reserve: bool) -> str | None:
        """What the service still waits for; None when it may run as is asked for, and that is reserved if asked to."""
        assert service.request is not None
        if service.held is not None and service.lacks() == Resources():
            return None
        message = await self._room.verdict(service.uid, self._now(), self._keeper.capacity)
        # No await from here on: what is decided and what is reserved belong together.
        if message is None and reserve:
            service.held = largest(service.held or Resources(), service.request.need)
            self._room.changed(self, service.key)
        return message

    async def _apply(self, service: Service, rayservice: Json, plan: ServicePlan) -> None:
        """Gives the applications to Serve, unless it has them. Raises InvalidSpec with what Serve has against them."""
        record = self._serve.accepted(service.uid)
        if record is not None and record.applications == plan.applications:
            there: Json = (await self._serve.details()).get("applications") or {}
            if all(application["name"] in there for application in plan.applications):
                return
        try:
            await self._serve.apply(service, plan, rayservice["spec"]["rayClusterConfig"])
        except ConfigRefused as error:
            service.refused = f"Ray Serve refuses it: {error}"
            raise InvalidSpec(PATH, service.refused) from error

    async def _observe(self, service: Service, rayservice: Json, waits: str) -> Outcome:
        """Writes what Serve says, and corrects what the service holds by what its replicas take."""
        seen, status = await self._seen(service, rayservice, waits)
        details = await self._serve.details()
        rayservice = await self._with_url(rayservice, self._serve.url(service, details))
        await self._write(rayservice, status)
        assert service.request is not None
        held = largest(service.request.need if seen.settled and not waits else service.held or Resources(), seen.used)
        if held != service.held:
            service.held = held
            self._room.changed(self, service.key)
        return RequeueAfter(_STEADY if seen.settled and seen.answering else _CHANGING)

    async def _seen(self, service: Service, rayservice: Json, waits: str) -> tuple[st.Observed, Status]:
        record = self._serve.accepted(service.uid)
        if record is None:  # the head has just died
            raise RayUnavailable(self._keeper.problem)
        details = await self._serve.details()
        if not details.get("controller_info"):  # replicas outlive their controller, which Ray starts again
            raise RayUnavailable("the Serve controller is starting again")
        routes = await self._serve.routes(details)
        seen = st.observe(record.applications, details, service.prefix, routes)
        if seen.settled and not service.up:
            service.up = True
            self._serve.say_up(service)
        status = st.observed(
            _status(rayservice),
            seen,
            cluster=service.cluster,
            up=service.up,
            waits=waits,
            generation=service.generation,
            now=self._now(),
        )
        return seen, status

    async def _refuse(self, service: Service, rayservice: Json, error: InvalidSpec) -> Outcome:
        """Says what is wrong. What ran before the change still runs, and is still watched."""
        status = _status(rayservice)
        outcome: Outcome = Done()
        if self._serve.accepted(service.uid) is not None:
            _, status = await self._seen(service, rayservice, "")
            outcome = RequeueAfter(_STEADY)
        elif service.held is not None:
            service.held = None
            self._room.changed(self, service.key)
        await self._write(rayservice, st.invalid(status, str(error), service.generation, self._now()))
        return outcome

    async def _waits(self, service: Service, rayservice: Json, message: str) -> None:
        status, generation, now = _status(rayservice), service.generation, self._now()
        if st.is_active(status):
            names = list((status["activeServiceStatus"].get("applicationStatuses") or {}).keys())
            await self._write(rayservice, st.lost(status, names, message, generation, now))
        else:
            await self._write(rayservice, st.initializing(status, message, generation, now))

    # -- ends ------------------------------------------------------------------------------------------------------

    async def _delete(self, service: Service, rayservice: Json) -> Outcome:
        finalizers = rayservice["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            return Done()
        if not await self._serve.remove(service):
            return RequeueAfter(_CHANGING)
        service.held = None
        self._room.changed(self, service.key)
        patch = {"metadata": {"finalizers": [name for name in finalizers if name != FINALIZER]}}
        with contextlib.suppress(NotFound):
            await self._client.merge_patch(RAYSERVICES, *service.key, patch, resource_version=version_of(rayservice))
        return Done()

    def _forget(self, key: Key) -> None:
        self._written.forget(key)
        for service in [service for service in self._services.values() if service.key == key]:
            del self._services[service.uid]
            self._room.changed(self, key)

    def _lose(self, why: str) -> None:
        """The head has died with all replicas. What they held stays reserved: the services are deployed again."""
        log.warning("services are down until there is a Ray head again: %s", why)
        for service in self._services.values():
            service.up, service.refused = False, ""
        self._wake_all()

    async def _sweep(self) -> None:
        """Once, when all RayServices are known: reads what was accepted of them, and removes what belongs to none."""
        if self._swept:
            return
        async with self._knowing:
            if not self._swept:
                self._serve.load(obj for obj in self._store.list() if _managed(obj))
                self._swept = True

    # -- writing and waking ----------------------------------------------------------------------------------------

    async def _write(self, rayservice: Json, status: Status) -> Json:
        """Writes what has changed of the status; returns the object as it is then."""
        old = _status(rayservice)
        patch = changes(old, st.stamped(old, status, self._now()))
        if not patch:
            return rayservice
        return await self._patch(rayservice, {"status": patch}, "status")

    async def _with_finalizer(self, rayservice: Json) -> Json:
        finalizers = rayservice["metadata"].get("finalizers") or []
        if FINALIZER in finalizers:
            return rayservice
        return await self._patch(rayservice, {"metadata": {"finalizers": [*finalizers, FINALIZER]}}, None)

    async def _with_url(self, rayservice: Json, url: str) -> Json:
        if not url or (rayservice["metadata"].get("annotations") or {}).get(URL_ANNOTATION) == url:
            return rayservice
        return await self._patch(rayservice, {"metadata": {"annotations": {URL_ANNOTATION: url}}}, None)

    async def _patch(self, rayservice: Json, patch: Json, subresource: str | None) -> Json:
        key = key_of(rayservice)
        answer = await self._client.merge_patch(
            RAYSERVICES, *key, patch, subresource=subresource, resource_version=version_of(rayservice)
        )
        self._written.wrote(key, RAYSERVICES, answer)
        return answer

    def _wake_all(self) -> None:
        for obj in self._store.list():
            self._queue.add(key_of(obj))


def _status(rayservice: Json) -> Status:
    return rayservice.get("status") or {}


def _managed(rayservice: Json) -> bool:
    """Whether KubeRay, and so this runner, would take this RayService."""
    return str((rayservice.get("spec") or {}).get("managedBy") or "") in MANAGED_BY_US
