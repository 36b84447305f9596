"""Puts the operator together: caches, controllers, report endpoint, election, life cycle. Nothing is decided here."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from slipway_operator.config import ConfigError, OperatorConfig
from slipway_operator.controllers.trainjob.controller import (
    BASE_MODEL_INDEX,
    OWNER_INDEX,
    Caches,
    TrainJobReconciler,
    by_base_model,
    by_owner,
)
from slipway_operator.controllers.trainjob.decide import Settings
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import ConnectionConfig
from slipway_operator.kube.controller import Controller, indexed, owner_of
from slipway_operator.kube.events import EventRecorder
from slipway_operator.kube.expectations import Expectations
from slipway_operator.kube.health import HealthServer
from slipway_operator.kube.lease import LeaderElector
from slipway_operator.kube.limiter import AdaptiveLimiter
from slipway_operator.kube.manager import Manager
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.queue import WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import RAYJOBS, TRAINJOBS, Key, uid_of
from slipway_operator.kube.store import Change, Store, keep
from slipway_operator.reports import ReportServer, ReportStore, RunKey

COMPONENT = "slipway-operator"
# Progress is folded into status at most once in that many seconds for each object.
_STATUS_INTERVAL = 2.0


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
        self._ray_jobs = Store(RAYJOBS, {OWNER_INDEX: by_owner}, project=keep("status"))
        self._reports = ReportStore()
        self._queue = WorkQueue("trainjob", metrics=self._metrics)
        self._manager = self._build()

    def _guard(self) -> None:
        if self._elector is not None:
            self._elector.guard()

    def _build(self) -> Manager:
        config, metrics = self._config, self._metrics
        jobs = Reflector(self._client, self._train_jobs, namespace=config.namespace, metrics=metrics)
        children = Reflector(self._client, self._ray_jobs, namespace=config.namespace, optional=True, metrics=metrics)
        recorder = EventRecorder(self._client, COMPONENT, metrics=metrics)
        expectations = Expectations("trainjob", self._train_jobs, self._ray_jobs, metrics=metrics)
        reconciler = TrainJobReconciler(
            self._client,
            Caches(self._train_jobs, self._ray_jobs, lambda: children.missing),
            self._reports,
            recorder,
            expectations,
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
        return Manager(
            reflectors=[jobs, children],
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

    def _forget_deleted(self, change: Change, live: bool) -> None:
        if change.type == "DELETED":
            self._reports.forget(uid_of(change.obj))


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
