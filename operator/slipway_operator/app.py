"""Puts the operator together: caches, controllers, report endpoint, election, life cycle. Nothing is decided here."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from pathlib import Path

from slipway_operator.config import ConfigError, OperatorConfig
from slipway_operator.controllers.trainjob.controller import (
    BASE_MODEL_INDEX,
    CLUSTER_INDEX,
    OWNER_INDEX,
    Caches,
    TrainJobReconciler,
    by_base_model,
    by_owner,
)
from slipway_operator.controllers.trainjob.observed import Settings
from slipway_operator.controllers.trainjob.pods import cluster_of, is_urgent, project
from slipway_operator.controllers.trainjob.testimony import PodTestimony
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import ConnectionConfig
from slipway_operator.kube.controller import Controller, indexed, owner_of
from slipway_operator.kube.discovery import Discovery
from slipway_operator.kube.events import EventRecorder
from slipway_operator.kube.expectations import Expectations
from slipway_operator.kube.health import HealthServer
from slipway_operator.kube.lease import LeaderElector
from slipway_operator.kube.limiter import AdaptiveLimiter
from slipway_operator.kube.manager import Manager
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.outcomes import Done, Outcome
from slipway_operator.kube.queue import WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import PODS, RAYJOBS, TRAINJOBS, Json, Key, key_of, uid_of
from slipway_operator.kube.store import Change, Store, keep
from slipway_operator.kuberay import LABEL_TRAINJOB
from slipway_operator.reports import ReportServer, ReportStore, RunKey
from slipway_operator.serving_tls import ServingCertificate, read_ca

COMPONENT = "slipway-operator"
# What runs and pods say is folded into status at most once in that many seconds for each object.
_STATUS_INTERVAL = 2.0
_LONGEST_BACKOFF = 20.0


class Scope:
    """One watched namespace, or all of them (None): its caches, and the reconciler that reads them."""

    def __init__(
        self,
        namespace: str | None,
        client: Client,
        reports: ReportStore,
        recorder: EventRecorder,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.train_jobs = Store(TRAINJOBS, {BASE_MODEL_INDEX: by_base_model, OWNER_INDEX: by_owner})
        # A RayJob's pod templates are several KiB that no reconcile reads.
        self.ray_jobs = Store(RAYJOBS, {OWNER_INDEX: by_owner}, project=keep("status", "spec.suspend"))
        self.pods = Store(PODS, {CLUSTER_INDEX: cluster_of}, project=project)
        self.testimony = PodTestimony()
        self.jobs = Reflector(client, self.train_jobs, namespace=namespace, metrics=metrics)
        self.children = Reflector(client, self.ray_jobs, namespace=namespace, optional=True, metrics=metrics)
        self.pod_reflector = Reflector(
            client, self.pods, namespace=namespace, label_selector=LABEL_TRAINJOB, dispensable=True, metrics=metrics
        )
        self.expectations = Expectations("trainjob", self.train_jobs, self.ray_jobs, metrics=metrics)
        caches = Caches(self.train_jobs, self.ray_jobs, lambda: self.children.missing, self.pods, self.testimony)
        self.reconciler = TrainJobReconciler(
            client, caches, reports, recorder, self.expectations, Discovery(client), settings
        )

    @property
    def reflectors(self) -> list[Reflector]:
        """All that keep its caches."""
        return [self.jobs, self.children, self.pod_reflector]

    def feed(self, controller: Controller) -> None:
        """Queues what changes here."""
        controller.watches(self.jobs)
        controller.watches(self.jobs, indexed(self.train_jobs, BASE_MODEL_INDEX))
        controller.watches(self.children, owner_of(TRAINJOBS))


class Operator:
    """The operator, built and not yet running."""

    def __init__(self, config: OperatorConfig, connection: ConnectionConfig) -> None:
        self._config = config
        self._settings = Settings(
            config=config, report_key=_read_key(config.reports.key_file), report_ca=read_ca(config.reports.ca_file)
        )
        self._certificate = ServingCertificate(config.reports.tls) if config.reports.tls else None
        self._metrics = Metrics()
        self._elector: LeaderElector | None = None
        self._client = Client(
            connection,
            limiter=AdaptiveLimiter(metrics=self._metrics),
            user_agent=COMPONENT,
            guard=self._guard,
            metrics=self._metrics,
        )
        if config.leader_election.enabled:
            self._elector = LeaderElector(
                self._client,
                config.leader_election.namespace,
                config.leader_election.name,
                f"{os.environ.get('POD_NAME', socket.gethostname())}_{os.getpid()}",
                metrics=self._metrics,
            )
        self._reports = ReportStore()
        self._recorder = EventRecorder(self._client, COMPONENT, metrics=self._metrics)
        watched: list[str | None] = [*config.namespaces] or [None]
        self._scopes = {
            namespace: Scope(namespace, self._client, self._reports, self._recorder, self._settings, self._metrics)
            for namespace in watched
        }
        # A write that was refused for an hour (rights, quota, a webhook) is tried again soon after the cause is mended:
        # nothing tells when that is.
        self._queue = WorkQueue("trainjob", max_delay=_LONGEST_BACKOFF, metrics=self._metrics)
        self._manager = self._build()

    def _guard(self) -> None:
        if self._elector is not None:
            self._elector.guard()

    def _build(self) -> Manager:
        config, metrics = self._config, self._metrics
        controller = Controller(
            "trainjob",
            self._queue,
            self._reconcile,
            workers=config.workers,
            hold=self._hold,
            metrics=metrics,
        )
        for scope in self._scopes.values():
            scope.feed(controller)
            scope.jobs.add_handler(self._forget_deleted)
            scope.pod_reflector.add_handler(functools.partial(self._on_pod, scope.testimony))
        return Manager(
            reflectors=[reflector for scope in self._scopes.values() for reflector in scope.reflectors],
            controllers=[controller],
            services=[self._serve_reports],
            recorder=self._recorder,
            elector=self._elector,
            health_address=_address(config.metrics.listen, "metrics.listen"),
            metrics=metrics,
        )

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises what ended it otherwise."""
        self._manager.stop_on_signals()
        async with self._client:
            await self._manager.run()

    # --- scopes ---------------------------------------------------------------------------------------------------

    def _scope(self, namespace: str) -> Scope | None:
        return self._scopes.get(namespace) or self._scopes.get(None)

    async def _reconcile(self, key: Key) -> Outcome:
        scope = self._scope(key.namespace)
        return await scope.reconciler.reconcile(key) if scope else Done()

    def _hold(self, key: Key) -> float:
        scope = self._scope(key.namespace)
        return scope.expectations.hold(key) if scope else 0.0

    # --- reports --------------------------------------------------------------------------------------------------

    async def _serve_reports(self) -> None:
        endpoint = ReportServer(
            self._reports,
            self._settings.report_key,
            current_attempt=self._current_attempt,
            on_report=self._on_report,
            ready=self._ready_for_reports,
        )
        certificate = self._certificate
        server = HealthServer(
            endpoint.app(),
            *_address(self._config.reports.listen, "reports.listen"),
            tls=certificate.context if certificate else None,
        )
        await server.start()
        try:
            await (certificate.follow() if certificate else asyncio.Event().wait())
        finally:
            await server.stop()

    def _ready_for_reports(self) -> bool:
        """Only who leads may answer: the others cannot write what they are told."""
        synced = all(scope.train_jobs.resource_version for scope in self._scopes.values())
        return synced and (self._elector is None or self._elector.is_valid())

    def _current_attempt(self, key: RunKey) -> int | None:
        scope = self._scope(key.namespace)
        job = scope.train_jobs.get(Key(key.namespace, key.name)) if scope else None
        if job is None or uid_of(job) != key.uid:
            return None
        return int((job.get("status") or {}).get("attempt", 0))

    def _on_report(self, key: RunKey, urgent: bool) -> None:
        self._queue.add_after(Key(key.namespace, key.name), 0.0 if urgent else _STATUS_INTERVAL)

    def _on_pod(self, testimony: PodTestimony, change: Change, live: bool) -> None:
        """Pods change a dozen times while a run comes up: gathered, unless one says that something is wrong."""
        testimony.hear(change)
        if change.old is not None and change.new is not None and _same(change.old, change.new):
            return
        job = Key(key_of(change.obj).namespace, change.obj["metadata"]["labels"][LABEL_TRAINJOB])
        self._queue.add_after(job, 0.0 if is_urgent(change.obj) else _STATUS_INTERVAL)

    def _forget_deleted(self, change: Change, live: bool) -> None:
        if change.type == "DELETED":
            self._reports.forget(uid_of(change.obj))


def _same(old: Json, new: Json) -> bool:
    """Whether two states of a pod, as projected, say the same."""
    deleted = [state["metadata"].get("deletionTimestamp") for state in (old, new)]
    return bool(old["status"] == new["status"]) and deleted[0] == deleted[1]


def _read_key(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"reports.keyFile: {path} cannot be read: {error.strerror}") from error
    if len(key) < 16:
        raise ConfigError(f"reports.keyFile: {path} holds {len(key)} bytes; a key has at least 16")
    return key


def _address(listen: str, field: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{field}: {listen!r} is not host:port")
    return host.strip("[]"), int(port)
