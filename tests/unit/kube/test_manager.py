"""The life of a whole process on a real server: order of start and stop, probes, signals, losses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from slipway_operator.kube.client import Client
from slipway_operator.kube.controller import Controller, Key
from slipway_operator.kube.errors import NotLeading
from slipway_operator.kube.events import EventRecorder
from slipway_operator.kube.lease import LeaderElector
from slipway_operator.kube.manager import Manager, SyncTimeout
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.outcomes import Done, Outcome
from slipway_operator.kube.queue import WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import CONFIGMAPS, LEASES, RAYJOBS, TRAINJOBS
from slipway_operator.kube.store import Store

from .conftest import FAST, until
from .fake_api import FakeApi, delay, reject

pytestmark = pytest.mark.timed

HELD = {"holderIdentity": "one", "leaseDurationSeconds": 2}


@dataclass
class Process:
    """An operator that copies each TrainJob's name into a ConfigMap."""

    api: FakeApi
    leader: bool = False
    work_seconds: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    began: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        reading = Client(self.api.config, request_timeout=0.5, metrics=self.metrics)
        elector = None
        if self.leader:
            elector = LeaderElector(
                reading, "ns", "slipway", "one", lease_duration=1.2, renew_deadline=0.8, retry_period=0.1,
                metrics=self.metrics,
            )  # fmt: skip
        self.client = Client(self.api.config, guard=elector.guard if elector else None, metrics=self.metrics)
        self.jobs = Reflector(reading, Store(TRAINJOBS), config=FAST, metrics=self.metrics)
        self.children = Reflector(reading, Store(RAYJOBS), config=FAST, optional=True, metrics=self.metrics)
        self.queue = WorkQueue("jobs", metrics=self.metrics)
        self.controller = Controller("jobs", self.queue, self.reconcile, metrics=self.metrics)
        self.controller.watches(self.jobs)
        self.recorder = EventRecorder(self.client, "test", metrics=self.metrics)
        self.manager = Manager(
            reflectors=[self.jobs, self.children],
            controllers=[self.controller],
            recorder=self.recorder,
            elector=elector,
            health_address=("127.0.0.1", 0),
            metrics=self.metrics,
            **({"stop_timeout": 1.0, "sync_timeout": 3.0} | self.options),
        )
        self.clients = (reading, self.client)

    async def reconcile(self, key: Key) -> Outcome:
        self.began.append(key.name)
        assert self.jobs.synced.is_set()
        await asyncio.sleep(self.work_seconds)
        body = {"metadata": {"name": key.name, "namespace": "ns"}}
        await self.client.apply(CONFIGMAPS, body, field_manager="test")
        job = self.jobs.store.get(key)
        assert job is not None
        self.recorder.event(job, "Normal", "Copied", "copied")
        self.ended.append(key.name)
        return Done()

    async def probe(self, path: str) -> tuple[int, str]:
        assert self.manager.health is not None
        async with aiohttp.ClientSession() as session, session.get(self.manager.health.url + path) as answer:
            return answer.status, await answer.text()


@contextlib.asynccontextmanager
async def started(process: Process) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(process.manager.run())
    await until(lambda: (process.manager.health and process.manager.health.url) or task.done())
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        for client in process.clients:
            await client.close()


@pytest.fixture
def no_child_crd(api: FakeApi) -> FakeApi:
    api.served = {"trainjobs", "configmaps", "events", "leases"}
    return api


async def test_it_works_from_the_start_to_an_orderly_stop(api: FakeApi) -> None:
    api.put(TRAINJOBS, "a")
    process = Process(api)
    async with started(process) as task:
        await until(lambda: api.get(CONFIGMAPS, "a"))
        api.put(TRAINJOBS, "b")
        await until(lambda: api.get(CONFIGMAPS, "b"))
        assert (await process.probe("/healthz"))[0] == 200
        assert (await process.probe("/readyz"))[0] == 200
        text = (await process.probe("/metrics"))[1]
        assert 'slipway_reconcile_total{controller="jobs",outcome="done"}' in text
        assert 'slipway_cached_objects{resource="trainjobs.slipway.dev"} 2.0' in text
        assert "slipway_event_loop_lag_seconds" in text
        process.manager.stop()
        await asyncio.wait_for(task, 2)
    assert sum(plural == "events" for plural, _, _ in api.objects) == 2  # written before the end
    with pytest.raises(aiohttp.ClientConnectionError):
        await process.probe("/healthz")


async def test_workers_wait_for_warm_caches_and_readyz_says_so(api: FakeApi) -> None:
    api.put(TRAINJOBS, "a")
    api.fault("list", delay(0.3), plural="trainjobs")
    process = Process(api)
    async with started(process):
        status, text = await process.probe("/readyz")
        assert (status, "trainjobs.slipway.dev" in text) == (503, True)
        assert (await process.probe("/healthz"))[0] == 200
        await asyncio.sleep(0.1)
        assert process.began == []
        await until(lambda: process.ended == ["a"])
        assert (await process.probe("/readyz"))[0] == 200


async def test_an_optional_crd_may_be_missing(no_child_crd: FakeApi) -> None:
    no_child_crd.put(TRAINJOBS, "a")
    process = Process(no_child_crd)
    async with started(process):
        await until(lambda: process.ended == ["a"])
        assert process.children.missing


async def test_a_cache_that_never_syncs_ends_the_start_with_its_name(api: FakeApi) -> None:
    api.fault("list", reject(403, "Forbidden"), plural="trainjobs", times=1000)
    process = Process(api, options={"sync_timeout": 0.4})
    async with started(process) as task:
        with pytest.raises(SyncTimeout, match=r"trainjobs\.slipway\.dev.*Forbidden"):
            await task


async def test_healthz_fails_while_a_watch_is_frozen_and_recovers(api: FakeApi) -> None:
    api.bookmark_every = 0.1
    process = Process(api)
    async with started(process):
        await until(lambda: len(api.asked("watch")) == 2)
        await asyncio.sleep(0.15)
        assert (await process.probe("/healthz"))[0] == 200
        api.freeze()
        await asyncio.sleep(FAST.silence_limit + 0.05)
        status, text = await process.probe("/healthz")
        assert (status, "silent" in text) == (503, True)
        api.thaw()
        await asyncio.sleep(0.15)
        assert (await process.probe("/healthz"))[0] == 200


async def test_sigterm_lets_the_work_in_hand_finish_and_releases_the_lease(api: FakeApi) -> None:
    api.put(LEASES, "slipway", spec=HELD)
    for name in ("a", "b", "c", "d", "e", "f", "g", "h"):
        api.put(TRAINJOBS, name)
    process = Process(api, leader=True, work_seconds=0.3)
    async with started(process) as task:
        process.manager.stop_on_signals()
        await until(lambda: len(process.began) == 4)
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 3)
        assert time.monotonic() - began < 1.5
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    assert sorted(process.ended) == sorted(process.began)  # nothing half done
    assert len(process.began) == 4  # and nothing new begun
    lease = api.get(LEASES, "slipway")
    assert lease is not None
    assert "holderIdentity" not in lease["spec"]
    last_work = max(asked.at for asked in api.requests if asked.plural in ("configmaps", "events"))
    assert api.asked("replace", "leases")[-1].at > last_work
    assert sum(plural == "events" for plural, _, _ in api.objects) == 4


async def test_work_that_does_not_end_in_time_is_cut_short(api: FakeApi) -> None:
    api.put(TRAINJOBS, "a")
    process = Process(api, work_seconds=60, options={"stop_timeout": 0.2})
    async with started(process) as task:
        await until(lambda: process.began)
        process.manager.stop()
        await asyncio.wait_for(task, 1)
    assert process.ended == []


async def test_a_candidate_keeps_its_caches_warm_and_writes_nothing(api: FakeApi) -> None:
    api.put(LEASES, "slipway", spec={"holderIdentity": "somebody", "leaseDurationSeconds": 30})
    api.put(TRAINJOBS, "a")
    process = Process(api, leader=True)
    async with started(process) as task:
        await until(process.jobs.synced.is_set)
        await asyncio.sleep(0.2)
        assert (await process.probe("/readyz"))[0] == 200
        assert process.began == []
        process.manager.stop()
        await asyncio.wait_for(task, 1)
    assert {asked.verb for asked in api.requests} <= {"list", "watch", "get"}


async def test_a_lost_lease_stops_everything_and_is_an_error(api: FakeApi) -> None:
    api.put(LEASES, "slipway", spec=HELD)
    process = Process(api, leader=True)
    async with started(process) as task:
        await until(process.queue._getters.__len__)
        api.put(LEASES, "slipway", spec={"holderIdentity": "somebody", "leaseDurationSeconds": 30})
        with pytest.raises(NotLeading):
            await asyncio.wait_for(task, 2)
        edited = len(api.requests)
        api.put(TRAINJOBS, "late")
        await asyncio.sleep(0.2)
    assert api.get(CONFIGMAPS, "late") is None
    assert len(api.requests) == edited


async def test_a_service_that_fails_ends_the_process(api: FakeApi) -> None:
    async def fails() -> None:
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    async def ends() -> None:
        await asyncio.sleep(0.1)

    for service, expected in ((fails, ZeroDivisionError), (ends, RuntimeError)):
        process = Process(api, options={"services": [service]})
        async with started(process) as task:
            with pytest.raises(expected):
                await asyncio.wait_for(task, 2)


async def test_the_watchdog_measures_a_blocked_loop(api: FakeApi) -> None:
    process = Process(api, options={"watchdog_period": 0.05})
    async with started(process):
        await asyncio.sleep(0.1)
        time.sleep(0.2)  # noqa: ASYNC251 - the fault
        await until(lambda: process.metrics.loop_lag._value.get() > 0.1)


def test_metric_names_are_an_interface() -> None:
    """Dashboards and alerts use these: a change here is a change for users."""
    names = {family.name for family in Metrics().registry.collect()}
    assert names == {
        "slipway_" + name
        for name in (
            "cached_objects",
            "event_loop_lag_seconds",
            "events",
            "handler_errors",
            "leader",
            "limiter_throttled",
            "limiter_window",
            "queue_adds",
            "queue_depth",
            "queue_retries",
            "queue_seconds",
            "reconcile",
            "reconcile_seconds",
            "relists",
            "request_seconds",
            "requests",
            "resource_missing",
            "stale_holds",
            "watch_age_seconds",
            "watch_events",
            "watch_staleness_seconds",
            "workers_busy",
        )
    }
