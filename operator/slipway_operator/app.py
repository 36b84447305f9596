"""Puts the operator together: caches, controllers, report endpoint, election, life cycle. Nothing is decided here."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from pathlib import Path
from typing import Any

from slipway_api.serving import ServingReport
from slipway_operator.config import ConfigError, OperatorConfig
from slipway_operator.controllers.deployment import controller as deployment
from slipway_operator.controllers.deployment.serving_reports import ServingReports
from slipway_operator.controllers.evaljob.kind import EvalJobKind
from slipway_operator.controllers.runs.controller import REFERENCE_INDEX, Caches, RunReconciler, by_reference
from slipway_operator.controllers.runs.kind import RunKind
from slipway_operator.controllers.runs.observe import CLUSTER_INDEX, OWNER_INDEX, RunCaches, by_owner
from slipway_operator.controllers.runs.observed import Settings
from slipway_operator.controllers.runs.pods import cluster_of, is_urgent, project
from slipway_operator.controllers.runs.testimony import PodTestimony
from slipway_operator.controllers.trainjob.kind import TrainJobKind
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
from slipway_operator.kube.queue import Priority, WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import (
    DEPLOYMENTS,
    EVALJOBS,
    PODS,
    RAYJOBS,
    RAYSERVICES,
    TRAINJOBS,
    Json,
    Key,
    Resource,
    key_of,
    uid_of,
)
from slipway_operator.kube.store import Change, Store, keep
from slipway_operator.kuberay import MANAGED_BY, OWNER_LABELS
from slipway_operator.reports import ReportServer, ReportStore, RunKey
from slipway_operator.serving_tls import ServingCertificate, read_ca

COMPONENT = "slipway-operator"
# What runs and pods say is folded into status at most once in that many seconds for each object.
_STATUS_INTERVAL = 2.0
_LONGEST_BACKOFF = 20.0
# KubeRay copies the labels of our pod templates: these are on the pods of runs and of Deployments, and on no others.
OUR_PODS = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())


KINDS: tuple[RunKind[Any], ...] = (TrainJobKind(), EvalJobKind())


class Scope:
    """One watched namespace, or all of them (None): its caches, and the reconcilers that read them."""

    def __init__(
        self,
        namespace: str | None,
        client: Client,
        reports: ReportStore,
        serving_reports: ServingReports,
        recorder: EventRecorder,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        # A RayJob's pod templates are several KiB that no reconcile reads.
        self.ray_jobs = Store(RAYJOBS, {OWNER_INDEX: by_owner}, project=keep("status", "spec.suspend"))
        self.pods = Store(PODS, {CLUSTER_INDEX: cluster_of}, project=project)
        self.testimony = PodTestimony()
        self.stores = {
            kind.resource: Store(kind.resource, {REFERENCE_INDEX: by_reference(kind), OWNER_INDEX: by_owner})
            for kind in KINDS
        }
        self.jobs = {
            resource: Reflector(client, store, namespace=namespace, metrics=metrics)
            for resource, store in self.stores.items()
        }
        self.children = Reflector(client, self.ray_jobs, namespace=namespace, optional=True, metrics=metrics)
        self.pod_reflector = Reflector(
            client, self.pods, namespace=namespace, label_selector=OUR_PODS, dispensable=True, metrics=metrics
        )
        self.runs = RunCaches(self.ray_jobs, lambda: self.children.missing, self.pods, self.testimony)
        discovery = Discovery(client)
        self.expectations: dict[Resource, Expectations] = {}
        self.reconcilers: dict[Resource, RunReconciler | deployment.DeploymentReconciler] = {}
        for kind in KINDS:
            store = self.stores[kind.resource]
            caches = Caches(jobs=store, train_jobs=self.stores[TRAINJOBS], runs=self.runs)
            written = (store, self.ray_jobs, *((self.stores[TRAINJOBS],) if kind.resource is EVALJOBS else ()))
            expectations = Expectations(_name(kind.resource), *written, metrics=metrics)
            self.expectations[kind.resource] = expectations
            self.reconcilers[kind.resource] = RunReconciler(
                kind, client, caches, reports, recorder, expectations, discovery, settings
            )

        self._add_deployments(namespace, client, serving_reports, reports, recorder, settings, metrics)

    def _add_deployments(
        self,
        namespace: str | None,
        client: Client,
        reports: ServingReports,
        run_reports: ReportStore,
        recorder: EventRecorder,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        indexes = {deployment.MODEL_INDEX: deployment.by_model, deployment.REQUIREMENT_INDEX: deployment.by_requirement}
        self.deployments = Store(DEPLOYMENTS, indexes)
        # Of a RayService's spec nothing is read: its digest stands in an annotation.
        self.ray_services = Store(RAYSERVICES, {OWNER_INDEX: by_owner}, project=keep("status"))
        self.endpoints = Reflector(client, self.deployments, namespace=namespace, metrics=metrics)
        self.services = Reflector(client, self.ray_services, namespace=namespace, optional=True, metrics=metrics)
        written = (self.deployments, self.ray_services, self.ray_jobs, self.stores[TRAINJOBS], self.stores[EVALJOBS])
        self.expectations[DEPLOYMENTS] = Expectations("deployment", *written, metrics=metrics)
        caches = deployment.Caches(
            deployments=self.deployments,
            ray_services=self.ray_services,
            ray_services_missing=lambda: self.services.missing,
            train_jobs=self.stores[TRAINJOBS],
            eval_jobs=self.stores[EVALJOBS],
            runs=self.runs,
        )
        self.reconcilers[DEPLOYMENTS] = deployment.DeploymentReconciler(
            client, caches, reports, run_reports, recorder, self.expectations[DEPLOYMENTS], settings
        )

    @property
    def reflectors(self) -> list[Reflector]:
        """All that keep its caches."""
        return [*self.jobs.values(), self.children, self.pod_reflector, self.endpoints, self.services]

    def feed(self, resource: Resource, controller: Controller) -> None:
        """Queues what changes here for jobs of a kind: they, their RayJobs, and the TrainJobs that they refer to."""
        controller.watches(self.jobs[resource])
        controller.watches(self.jobs[TRAINJOBS], indexed(self.stores[resource], REFERENCE_INDEX))
        controller.watches(self.children, owner_of(resource))
        if resource is EVALJOBS:  # a cross-validation makes jobs of both kinds
            controller.watches(self.jobs[TRAINJOBS], owner_of(resource))
            controller.watches(self.jobs[EVALJOBS], owner_of(resource))

    def feed_deployments(self, controller: Controller) -> None:
        """Queues what changes here for Deployments: they, their RayServices and RayJobs, and what they refer to."""
        controller.watches(self.endpoints)
        controller.watches(self.jobs[TRAINJOBS], indexed(self.deployments, deployment.MODEL_INDEX))
        controller.watches(self.jobs[EVALJOBS], indexed(self.deployments, deployment.REQUIREMENT_INDEX))
        controller.watches(self.services, owner_of(DEPLOYMENTS))
        for resource in (TRAINJOBS, EVALJOBS):  # of a retrain
            controller.watches(self.jobs[resource], owner_of(DEPLOYMENTS))
        controller.watches(self.children, owner_of(DEPLOYMENTS))

    def find(self, key: RunKey) -> Json | None:
        """The object that a report speaks of, None when there is none with that UID."""
        store = self.deployments if key.kind == DEPLOYMENTS.plural else self.stores[_BY_PLURAL[key.kind]]
        found = store.get(Key(key.namespace, key.name))
        return found if found is not None and uid_of(found) == key.uid else None

    def synced(self) -> bool:
        """Whether all that may report is known."""
        return all(store.resource_version for store in (*self.stores.values(), self.deployments))


def _name(resource: Resource) -> str:
    """What a controller is called in metrics and logs."""
    return resource.kind.lower()


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
        self._serving_reports = ServingReports()
        self._recorder = EventRecorder(self._client, COMPONENT, metrics=self._metrics)
        watched: list[str | None] = [*config.namespaces] or [None]
        self._scopes = {
            namespace: Scope(
                namespace,
                self._client,
                self._reports,
                self._serving_reports,
                self._recorder,
                self._settings,
                self._metrics,
            )
            for namespace in watched
        }
        # A write that was refused for an hour (rights, quota, a webhook) is tried again soon after the cause is mended:
        # nothing tells when that is.
        self._queues = {
            resource: WorkQueue(_name(resource), max_delay=_LONGEST_BACKOFF, metrics=self._metrics)
            for resource in (*(kind.resource for kind in KINDS), DEPLOYMENTS)
        }
        self._manager = self._build()

    def _guard(self) -> None:
        if self._elector is not None:
            self._elector.guard()

    def _build(self) -> Manager:
        config, metrics = self._config, self._metrics
        controllers = []
        for resource, queue in self._queues.items():
            controller = Controller(
                _name(resource),
                queue,
                functools.partial(self._reconcile, resource),
                workers=config.workers,
                hold=functools.partial(self._hold, resource),
                metrics=metrics,
            )
            for scope in self._scopes.values():
                if resource is DEPLOYMENTS:
                    scope.feed_deployments(controller)
                else:
                    scope.feed(resource, controller)
            controllers.append(controller)
        for scope in self._scopes.values():
            for reflector in (*scope.jobs.values(), scope.endpoints):
                reflector.add_handler(self._forget_deleted)
            scope.pod_reflector.add_handler(functools.partial(self._on_pod, scope.testimony))
        return Manager(
            reflectors=[reflector for scope in self._scopes.values() for reflector in scope.reflectors],
            controllers=controllers,
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

    async def _reconcile(self, resource: Resource, key: Key) -> Outcome:
        scope = self._scope(key.namespace)
        return await scope.reconcilers[resource].reconcile(key) if scope else Done()

    def _hold(self, resource: Resource, key: Key) -> float:
        scope = self._scope(key.namespace)
        return scope.expectations[resource].hold(key) if scope else 0.0

    # --- reports --------------------------------------------------------------------------------------------------

    async def _serve_reports(self) -> None:
        endpoint = ReportServer(
            self._reports,
            self._settings.report_key,
            current_attempt=self._current_attempt,
            on_report=self._on_report,
            ready=self._ready_for_reports,
            on_serving_report=self._on_serving_report,
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
        synced = all(scope.synced() for scope in self._scopes.values())
        return synced and (self._elector is None or self._elector.is_valid())

    def _current_attempt(self, key: RunKey) -> int | None:
        scope = self._scope(key.namespace)
        found = scope.find(key) if scope else None
        status = (found or {}).get("status") or {}
        if key.kind == DEPLOYMENTS.plural:  # its router speaks as attempt 0, and always may
            status = (status.get("compression") or {}) if key.attempt else {}
        return None if found is None else int(status.get("attempt", 0))

    def _on_report(self, key: RunKey, priority: Priority | None) -> None:
        queue, job = self._queues[_BY_PLURAL[key.kind]], Key(key.namespace, key.name)
        if priority is None:
            queue.add_after(job, _STATUS_INTERVAL)
        else:
            queue.add(job, priority)

    def _on_serving_report(self, key: RunKey, report: ServingReport) -> bool:
        kept = self._serving_reports.offer(key.uid, report)
        if kept:
            self._queues[DEPLOYMENTS].add_after(Key(key.namespace, key.name), _STATUS_INTERVAL)
        return kept

    def _on_pod(self, testimony: PodTestimony, change: Change, live: bool) -> None:
        """Pods change a dozen times while a run comes up: gathered, unless one says that something is wrong."""
        testimony.hear(change)
        if change.old is not None and change.new is not None and _same(change.old, change.new):
            return
        labels = change.obj["metadata"]["labels"]
        for resource, queue in self._queues.items():
            name = labels.get(OWNER_LABELS[resource.kind])
            if name:
                job = Key(key_of(change.obj).namespace, name)
                queue.add_after(job, 0.0 if is_urgent(change.obj) else _STATUS_INTERVAL)

    def _forget_deleted(self, change: Change, live: bool) -> None:
        if change.type == "DELETED":
            self._reports.forget(uid_of(change.obj))
            self._serving_reports.forget(uid_of(change.obj))


_BY_PLURAL = {resource.plural: resource for resource in (*(kind.resource for kind in KINDS), DEPLOYMENTS)}


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
