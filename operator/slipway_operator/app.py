"""Puts the operator together: caches, controllers, report endpoint, election, life cycle. Nothing is decided here."""

from __future__ import annotations

import asyncio
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
from slipway_operator.kube.queue import WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import PODS, RAYJOBS, TRAINJOBS, Json, Key, key_of, uid_of
from slipway_operator.kube.store import Change, Store, keep
from slipway_operator.kuberay import LABEL_TRAINJOB
from slipway_operator.reports import ReportServer, ReportStore, RunKey

COMPONENT = "slipway-operator"
# What runs and pods say is folded into status at most once in that many seconds for each object.
_STATUS_INTERVAL = 2.0
_LONGEST_BACKOFF = 20.0


class Operator:
    """The operator, built and not yet running."""

    def __init__(self, config: OperatorConfig, connection: ConnectionConfig) -> None:
        self._config = config
        self._settings = Settings(config=config, report_key=_read_key(config.reports.key_file))
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
        self._train_jobs = Store(TRAINJOBS, {BASE_MODEL_INDEX: by_base_model, OWNER_INDEX: by_owner})
        # A RayJob's pod templates are several KiB that no reconcile reads.
        self._ray_jobs = Store(RAYJOBS, {OWNER_INDEX: by_owner}, project=keep("status", "spec.suspend"))
        self._pods = Store(PODS, {CLUSTER_INDEX: cluster_of}, project=project)
        self._testimony = PodTestimony()
        self._reports = ReportStore()
        # A write that was refused for an hour (rights, quota, a webhook) is tried again soon after the cause is mended:
        # nothing tells when that is.
        self._queue = WorkQueue("trainjob", max_delay=_LONGEST_BACKOFF, metrics=self._metrics)
        self._manager = self._build()

    def _guard(self) -> None:
        if self._elector is not None:
            self._elector.guard()

    def _build(self) -> Manager:
        config, metrics = self._config, self._metrics
        jobs = Reflector(self._client, self._train_jobs, namespace=config.namespace, metrics=metrics)
        children = Reflector(self._client, self._ray_jobs, namespace=config.namespace, optional=True, metrics=metrics)
        pods = Reflector(
            self._client,
            self._pods,
            namespace=config.namespace,
            label_selector=LABEL_TRAINJOB,
            dispensable=True,
            metrics=metrics,
        )
        recorder = EventRecorder(self._client, COMPONENT, metrics=metrics)
        expectations = Expectations("trainjob", self._train_jobs, self._ray_jobs, metrics=metrics)
        reconciler = TrainJobReconciler(
            self._client,
            Caches(self._train_jobs, self._ray_jobs, lambda: children.missing, self._pods, self._testimony),
            self._reports,
            recorder,
            expectations,
            Discovery(self._client),
            self._settings,
        )
        controller = Controller(
            "trainjob",
            self._queue,
            reconciler.reconcile,
            workers=config.workers,
            hold=expectations.hold,
            metrics=metrics,
        )
        controller.watches(jobs)
        controller.watches(jobs, indexed(self._train_jobs, BASE_MODEL_INDEX))
        controller.watches(children, owner_of(TRAINJOBS))
        jobs.add_handler(self._forget_deleted)
        pods.add_handler(self._on_pod)
        return Manager(
            reflectors=[jobs, children, pods],
            controllers=[controller],
            services=[self._serve_reports],
            recorder=recorder,
            elector=self._elector,
            health_address=_address(config.metrics.listen, "metrics.listen"),
            metrics=metrics,
        )

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises what ended it otherwise."""
        self._manager.stop_on_signals()
        async with self._client:
            await self._manager.run()

    # --- reports --------------------------------------------------------------------------------------------------

    async def _serve_reports(self) -> None:
        endpoint = ReportServer(
            self._reports,
            self._settings.report_key,
            current_attempt=self._current_attempt,
            on_report=self._on_report,
            ready=self._ready_for_reports,
        )
        server = HealthServer(endpoint.app(), *_address(self._config.reports.listen, "reports.listen"))
        await server.start()
        try:
            await asyncio.Event().wait()
        finally:
            await server.stop()

    def _ready_for_reports(self) -> bool:
        """Only who leads may answer: the others cannot write what they are told."""
        return bool(self._train_jobs.resource_version) and (self._elector is None or self._elector.is_valid())

    def _current_attempt(self, key: RunKey) -> int | None:
        job = self._train_jobs.get(Key(key.namespace, key.name))
        if job is None or uid_of(job) != key.uid:
            return None
        return int((job.get("status") or {}).get("attempt", 0))

    def _on_report(self, key: RunKey, urgent: bool) -> None:
        self._queue.add_after(Key(key.namespace, key.name), 0.0 if urgent else _STATUS_INTERVAL)

    def _on_pod(self, change: Change, live: bool) -> None:
        """Pods change a dozen times while a run comes up: gathered, unless one says that something is wrong."""
        self._testimony.hear(change)
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
