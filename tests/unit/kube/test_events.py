"""Events: deduplicated, bounded, and never in the way of a reconcile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from slipway_operator.kube.backoff import Backoff
from slipway_operator.kube.client import Client
from slipway_operator.kube.events import EventConfig, EventRecorder
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import EVENTS

from .conftest import until
from .fake_api import FakeApi, reject

pytestmark = pytest.mark.timed

QUICK = EventConfig(backoff=Backoff(0.01, 0.05))


def job(name: str = "j", uid: str = "u1") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": "5"}
    return {"apiVersion": "slipway.dev/v1alpha1", "kind": "TrainJob", "metadata": metadata}


def written(api: FakeApi) -> list[dict[str, Any]]:
    return [obj for (plural, _, _), obj in api.objects.items() if plural == "events"]


@contextlib.asynccontextmanager
async def running(recorder: EventRecorder) -> AsyncIterator[EventRecorder]:
    task = asyncio.create_task(recorder.run())
    yield recorder
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})


async def test_an_event_says_everything_that_describe_shows(api: FakeApi, client: Client) -> None:
    async with running(EventRecorder(client, "slipway-operator", instance="pod-1")) as recorder:
        recorder.event(job(), "Warning", "Failed", "out of memory")
        await until(lambda: written(api))
    (event,) = written(api)
    assert event["involvedObject"] == {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainJob",
        "name": "j",
        "namespace": "ns",
        "uid": "u1",
        "resourceVersion": "5",
    }
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "Failed", "out of memory")
    assert (event["count"], event["source"]["component"]) == (1, "slipway-operator")
    assert event["firstTimestamp"].endswith("Z")
    assert event["metadata"]["namespace"] == "ns"


async def test_the_same_event_counts_up_even_after_a_restart(api: FakeApi, client: Client) -> None:
    for _ in range(2):  # the second recorder is a process that knows nothing of the first
        async with running(EventRecorder(client, "slipway-operator")) as recorder:
            for _ in range(3):
                recorder.event(job(), "Normal", "Started", "attempt 1")
                await recorder.flush()
    (event,) = written(api)
    assert event["count"] == 6
    assert len(api.asked("create")) == 2


async def test_repeats_that_wait_become_one_write(api: FakeApi, client: Client) -> None:
    recorder = EventRecorder(client, "slipway-operator")
    for _ in range(100):
        recorder.event(job(), "Normal", "Started", "attempt 1")
    await recorder.flush()
    assert [event["count"] for event in written(api)] == [100]
    assert len(api.requests) == 1


async def test_different_objects_and_messages_are_different_events(api: FakeApi, client: Client) -> None:
    recorder = EventRecorder(client, "slipway-operator")
    recorder.event(job(), "Normal", "Started", "attempt 1")
    recorder.event(job(), "Normal", "Started", "attempt 2")
    recorder.event(job(uid="recreated"), "Normal", "Started", "attempt 1")
    recorder.event(job("x" * 253, "long"), "Normal", "Started", "m" * 5000)
    await recorder.flush()
    assert len(written(api)) == 4
    assert max(len(event["metadata"]["name"]) for event in written(api)) <= 253
    assert max(len(event["message"]) for event in written(api)) == 1024


async def test_an_event_that_expired_is_written_anew(api: FakeApi, client: Client) -> None:
    recorder = EventRecorder(client, "slipway-operator")
    recorder.event(job(), "Normal", "Started", "attempt 1")
    await recorder.flush()
    for key in [*api.objects]:
        del api.objects[key]
    recorder.event(job(), "Normal", "Started", "attempt 1")
    await recorder.flush()
    assert [event["count"] for event in written(api)] == [1]


async def test_an_object_that_talks_without_end_is_cut_short(api: FakeApi, client: Client) -> None:
    metrics = Metrics()
    recorder = EventRecorder(client, "slipway-operator", metrics=metrics)
    for number in range(500):
        recorder.event(job(), "Warning", "Failed", f"attempt {number}")
    recorder.event(job("other", "u2"), "Normal", "Started", "attempt 1")
    await recorder.flush()
    assert len(written(api)) == 25 + 1
    assert metrics.events.labels("filtered")._value.get() == 475


async def test_memory_is_bounded_while_the_server_is_away(api: FakeApi, client: Client) -> None:
    metrics = Metrics()
    config = EventConfig(queue_size=50, memory=100)
    recorder = EventRecorder(client, "slipway-operator", config=config, metrics=metrics)
    for number in range(1000):
        recorder.event(job(uid=f"u{number}"), "Normal", "Started", "attempt 1")
    assert metrics.events.labels("overflow")._value.get() == 950
    assert len(recorder._tokens) <= 100
    await recorder.flush()
    assert len(written(api)) == 50


async def test_recording_never_waits_and_never_raises(api: FakeApi, client: Client) -> None:
    api.freeze()
    async with running(EventRecorder(client, "slipway-operator", config=QUICK)) as recorder:
        started = time.monotonic()
        for broken in ({}, {"metadata": None}, {"metadata": {"name": 5}}, {"metadata": {"name": "n", "uid": "u"}}):
            recorder.event(broken, "Normal", "Started", "m")
        recorder.event(job(), "Normal", "Started", "m")
        assert time.monotonic() - started < 0.1
        await asyncio.sleep(0.05)
        api.thaw()
        await until(lambda: written(api))


async def test_failed_writes_are_tried_again_for_a_while_and_then_dropped(api: FakeApi, client: Client) -> None:
    metrics = Metrics()
    async with running(EventRecorder(client, "slipway-operator", config=QUICK, metrics=metrics)) as recorder:
        api.fault("create", reject(500), times=3)
        recorder.event(job(), "Normal", "Started", "first")
        await until(lambda: written(api))
        api.fault("create", reject(500), times=100)
        recorder.event(job(), "Normal", "Started", "second")
        await until(lambda: metrics.events.labels("dropped")._value.get() == 1)
        api.faults.clear()
        api.fault("create", reject(403, "Forbidden"))
        recorder.event(job(), "Normal", "Started", "third")
        recorder.event(job(), "Normal", "Started", "fourth")
        await until(lambda: len(written(api)) == 2)
    assert {event["message"] for event in written(api)} == {"first", "fourth"}
    assert EVENTS.path("ns") in {asked.path for asked in api.asked("create")}
