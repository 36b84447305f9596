"""Gives applications to the one Ray Serve and takes them away again, without touching those of other RayServices.

Serve takes one configuration for everything, so each change puts the union of what has been accepted before and what is
new. A configuration that Serve refuses is therefore always the new one's fault, and the others keep what they have.

What was accepted is kept in `<state>/serve/<namespace>_<name>_<first 8 of the UID>.json`, written after Serve took it,
and counts only for the Ray head that took it. So a new runner knows what to put, and a new head starts from nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from slipway_local.ports import keep_ports
from slipway_local.processes import ProcessRef, marked, read_json, write_json
from slipway_local.processes import stop as stop_processes
from slipway_local.ray_runner.errors import ConfigRefused, RayUnavailable
from slipway_local.ray_runner.keeper import RayKeeper
from slipway_local.ray_runner.lookup import Lookup
from slipway_local.ray_runner.resources import Resources
from slipway_local.ray_runner.rundir import RunDirs
from slipway_local.ray_runner.serve_api import ServeApi
from slipway_local.ray_runner.service import Service
from slipway_local.ray_runner.service_translate import ServicePlan, route_of, translate_service
from slipway_local.ray_runner.translate import SERVICE_MARK, Place, references
from slipway_operator.kube.resource import Json

_FRESH = 0.3  # seconds for which an answer of Serve counts for all
_STOP_GRACE = 2.0


@dataclass
class Record:
    """What Serve has accepted of one RayService."""

    mark: str = ""
    """The Ray head that took it."""
    applications: list[dict[str, Any]] = field(default_factory=list)
    need: Resources = field(default_factory=Resources)
    cluster: dict[str, Any] = field(default_factory=dict)
    """spec.rayClusterConfig at that time."""
    up: bool = False
    """All of it has run on that head."""


class Services:
    """The services of one state directory on the current Ray."""

    def __init__(self, state_dir: Path, keeper: RayKeeper, lookup: Lookup) -> None:
        self._keeper = keeper
        self._lookup = lookup
        self._dirs = RunDirs(state_dir, "services")
        self._records_dir = state_dir / "serve"
        self._ports = state_dir / "ray" / "serve-port.json"
        self._scope = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:12]
        self._records: dict[str, Record] = {}
        self._lock = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._answer: tuple[float, dict[str, Any]] | None = None
        self._api: tuple[str, ServeApi] | None = None

    async def close(self) -> None:
        """Closes the connections; what runs goes on."""
        if self._api is not None:
            await self._api[1].close()

    # -- what has been accepted ------------------------------------------------------------------------------------

    def load(self, living: Iterable[Json]) -> None:
        """Reads the records of these RayServices, and removes what belongs to none of them."""
        known = {}
        for obj in living:
            metadata = obj["metadata"]
            path = self._dirs.path(metadata["namespace"], metadata["name"], metadata["uid"])
            known[path.name] = path
            document = read_json(self._record_path(path.name))
            if isinstance(document, dict):
                self._records[metadata["uid"]] = _record(document)
        self._dirs.remove_strangers(known.values())
        for file in self._records_dir.glob("*.json"):
            if file.stem not in known:
                file.unlink()

    def record(self, uid: str) -> Record | None:
        """What was accepted last, on whatever head."""
        return self._records.get(uid)

    def accepted(self, uid: str) -> Record | None:
        """What the current head has accepted."""
        record, head = self._records.get(uid), self._keeper.head
        return record if record is not None and head is not None and record.mark == head.mark else None

    # -- doing -----------------------------------------------------------------------------------------------------

    async def plan(self, service: Service, rayservice: Json) -> ServicePlan:
        """What to run. Raises InvalidSpec or MissingReference."""
        assert service.request is not None
        objects = await self._lookup.objects(service.key.namespace, references(service.request))
        place = Place(
            self._directory(service), self._keeper.ray.bin_dir, self._mark(service.uid), rayservice["metadata"]
        )
        return translate_service(service.request, objects, place)

    def refresh_files(self, service: Service, plan: ServicePlan) -> None:
        """Brings the mounted files up to date."""
        self._dirs.refresh(self._directory(service), plan.directories, plan.files)

    async def apply(self, service: Service, plan: ServicePlan, cluster: dict[str, Any]) -> None:
        """Makes this what runs of the service. Raises ConfigRefused, and then nothing has changed."""
        assert service.request is not None
        async with self._lock:
            head = self._keeper.head
            if head is None:
                raise RayUnavailable(self._keeper.problem)
            # Its own come first: an index in Serve's complaint is then that of serveConfigV2.
            await self._put([*plan.applications, *self._others(service.uid)])
            before = self.accepted(service.uid)
            record = Record(
                head.mark, plan.applications, service.request.need, cluster, before is not None and before.up
            )
            self._write(service, record)

    def say_up(self, service: Service) -> None:
        """Notes that all of it has run on this head."""
        record = self.accepted(service.uid)
        if record is not None and not record.up:
            record.up = True
            self._write(service, record)

    async def remove(self, service: Service) -> bool:
        """Takes it out of Serve: whether nothing of it is left, files included. Ask again while it is not."""
        async with self._lock:
            self._records.pop(service.uid, None)
            if self._keeper.head is not None:
                there = _names(await self.details(fresh=True), service.prefix)
                if there - {"DELETING"}:
                    try:
                        await self._put(self._others(service.uid))
                    except ConfigRefused as error:  # what runs was accepted before: not to be expected
                        raise RayUnavailable(f"the other services' configuration was refused: {error}") from error
                if there:
                    return False
            mark = self._mark(service.uid)
            await stop_processes(lambda: _marked(mark), grace=_STOP_GRACE)
            self._dirs.remove(self._directory(service))
            self._record_path(self._directory(service).name).unlink(missing_ok=True)
            return True

    async def details(self, *, fresh: bool = False) -> dict[str, Any]:
        """ServeInstanceDetails. One answer serves all that ask within a moment. Raises RayUnavailable."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with self._asking:
            limit = asked if fresh else asked - _FRESH
            if self._answer is None or self._answer[0] < limit:
                started = loop.time()
                self._answer = (started, await (await self._client()).details())
            return self._answer[1]

    async def routes(self, details: dict[str, Any]) -> frozenset[str] | None:
        """What the HTTP proxy knows the way to, asked of itself; None when it is not well.

        HAProxy leaves a service whose router is not running to Ray's own proxy, which hears of routes by itself: until
        both know one, its answer may be a 404. One that does not answer gets no requests either.
        """
        client, head = await self._client(), self._keeper.head
        routes = await client.routes(int(details["http_options"]["port"]))
        if routes is None or head is None or head.fallback_port is None:
            return routes
        behind = await client.routes(head.fallback_port)
        return routes if behind is None else routes & behind

    def url(self, service: Service, details: dict[str, Any]) -> str:
        """Where it answers, "" while Serve has not been started."""
        port = (details.get("http_options") or {}).get("port") if details.get("controller_info") else None
        return f"http://127.0.0.1:{port}{route_of(*service.key)}" if port else ""

    # -- pieces ----------------------------------------------------------------------------------------------------

    async def _put(self, applications: list[dict[str, Any]]) -> None:
        details = await self.details(fresh=True)
        if details.get("controller_info"):
            port = int(details["http_options"]["port"])
        else:
            # Serve is started by this. Its port is that of last time, if nobody else has taken it since.
            self._ports.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            port = keep_ports(self._ports, ["http"])["http"]
        self._answer = None
        await (await self._client()).put(applications, port)

    def _others(self, uid: str) -> list[dict[str, Any]]:
        found = [self.accepted(other) for other in sorted(self._records) if other != uid]
        return [application for record in found if record is not None for application in record.applications]

    async def _client(self) -> ServeApi:
        head = self._keeper.head
        if head is None:
            raise RayUnavailable(self._keeper.problem)
        if self._api is None or self._api[0] != head.mark:
            await self.close()
            self._answer = None
            self._api = (head.mark, ServeApi(head.url, self._keeper.ray.token))
        return self._api[1]

    def _write(self, service: Service, record: Record) -> None:
        self._records[service.uid] = record
        self._records_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        need = record.need
        write_json(
            self._record_path(self._directory(service).name),
            {
                "mark": record.mark,
                "applications": record.applications,
                "need": {"cpu": str(need.cpu), "gpu": str(need.gpu), "memory": str(need.memory)},
                "cluster": record.cluster,
                "up": record.up,
            },
        )

    def _directory(self, service: Service) -> Path:
        return self._dirs.path(service.key.namespace, service.key.name, service.uid)

    def _record_path(self, name: str) -> Path:
        return self._records_dir / f"{name}.json"

    def _mark(self, uid: str) -> str:
        return f"{self._scope}/{uid}"


def _record(document: dict[str, Any]) -> Record:
    need = {name: Decimal(str(amount)) for name, amount in (document.get("need") or {}).items()}
    return Record(
        str(document.get("mark") or ""),
        list(document.get("applications") or ()),
        Resources(**need),
        dict(document.get("cluster") or {}),
        bool(document.get("up")),
    )


def _names(details: dict[str, Any], prefix: str) -> set[str]:
    """The statuses of the applications whose names begin so; DELETING alone means that they are on their way out."""
    return {
        str(application.get("status"))
        for name, application in (details.get("applications") or {}).items()
        if name.startswith(prefix)
    }


def _marked(mark: str) -> list[ProcessRef]:
    return list(marked(SERVICE_MARK, mark))
