"""The whole operator on the local control plane takes an alarm to a TrainJob, an EvalJob and a new version.

What Ray would do is played: the RayService is ready, the jobs end. The drift is put into status, as the report of the
watcher would be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from slipway_api import conditions as c
from slipway_local.apiserver.server import ApiServer
from slipway_operator.app import Operator
from slipway_operator.config import LeaderElectionConfig, MetricsConfig, OperatorConfig, ReportsConfig, StorageConfig
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import Conflict, NotFound
from slipway_operator.kube.resource import DEPLOYMENTS, EVALJOBS, EVENTS, RAYSERVICES, TRAINJOBS, Resource

NOW = "2026-01-01T00:00:00Z"
SPEC: dict[str, Any] = {
    "model": {"uri": "/models/a"},
    "capture": {"content": "examples"},
    "canary": {"steps": [{"weight": 50, "pauseSeconds": 1}]},
    "drift": {"retrain": {"trainJob": {"name": "template"}, "steps": 5}},
}
TEMPLATE: dict[str, Any] = {
    "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
    "tokenizer": {"train": {}},
    "data": {"sources": [{"uri": "/corpus"}], "evalSources": [{"uri": "/held-out"}]},
    "training": {"steps": 10},
    "suspend": True,
}
ALARM = {"id": "alarm-1", "kind": "data", "signal": "input-length", "test": "ks", "statistic": "0.4", "effect": "0.4"}
ALARM |= {"threshold": "0.1", "window": 3, "start": NOW, "end": NOW}  # type: ignore[dict-item]
SNAPSHOT = {"uri": "/captured/1", "digest": "sha256:s", "examples": 9, "heldOut": 3, "time": NOW}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of an API server that an operator works on."""
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    config = OperatorConfig(
        storage=StorageConfig(uri=f"file://{tmp_path}/storage"),
        reports=ReportsConfig(listen="127.0.0.1:0", url="http://127.0.0.1:1", key_file=tmp_path / "key"),
        metrics=MetricsConfig(listen="127.0.0.1:0"),
        leader_election=LeaderElectionConfig(enabled=False),
    )
    async with ApiServer(tmp_path / "apiserver") as server:
        connection = await load_config(str(server.entrance.kubeconfig), None)
        operator = asyncio.create_task(Operator(config, connection).run())
        async with Client(connection) as found:
            yield found
        operator.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await operator


async def say(client: Client, resource: Resource, name: str, status: dict[str, Any]) -> None:
    """Somebody else than the operator says this in status."""
    kind = {"apiVersion": resource.api_version, "kind": resource.kind}
    body = kind | {"metadata": {"name": name, "namespace": "default"}, "status": status}
    await client.apply_status(resource, body, field_manager="test")


async def play_ray_serve(client: Client) -> None:
    """Every application that the RayService asks for runs."""
    while True:
        with contextlib.suppress(NotFound, Conflict):
            service = await client.get(RAYSERVICES, "default", "chat")
            asked = json.loads(service["spec"]["serveConfigV2"])["applications"]
            running = {app["name"]: {"status": "RUNNING"} for app in asked}
            await say(client, RAYSERVICES, "chat", {"activeServiceStatus": {"applicationStatuses": running}})
        await asyncio.sleep(0.2)


async def until(client: Client, what: str, check: Callable[[dict[str, Any]], Any], limit: float = 60) -> dict[str, Any]:
    """The Deployment's status once it is as asked."""
    deadline = time.monotonic() + limit
    while True:
        status: dict[str, Any] = (await client.get(DEPLOYMENTS, "default", "chat")).get("status") or {}
        if check(status):
            return status
        assert time.monotonic() < deadline, f"{what} did not come: {status}"
        await asyncio.sleep(0.1)


def stage(wanted: str) -> Callable[[dict[str, Any]], bool]:
    """Whether the retrain at work is so far."""
    return lambda status: ((status.get("retrain") or {}).get("current") or {}).get("stage") == wanted


def ended(*types: str) -> list[dict[str, Any]]:
    conditions = ({"type": type_, "status": "True", "reason": "Played", "message": "played"} for type_ in types)
    return [condition | {"lastTransitionTime": NOW} for condition in conditions]


async def manifest(client: Client, resource: Resource, name: str, spec: dict[str, Any]) -> None:
    head = {"apiVersion": resource.api_version, "kind": resource.kind}
    await client.create(resource, head | {"metadata": {"name": name, "namespace": "default"}, "spec": spec})


async def appears(client: Client, resource: Resource, name: str, limit: float = 30) -> dict[str, Any]:
    """The object, once it is there."""
    deadline = time.monotonic() + limit
    while True:
        with contextlib.suppress(NotFound):
            return await client.get(resource, "default", name)
        assert time.monotonic() < deadline, f"{resource.kind} {name} was not made"
        await asyncio.sleep(0.1)


async def jobs(client: Client) -> list[str]:
    found = [*(await client.list(TRAINJOBS, "default"))[0], *(await client.list(EVALJOBS, "default"))[0]]
    return sorted(job["metadata"]["name"] for job in found)


async def eventually(what: str, check: Callable[[], Coroutine[Any, Any, bool]], limit: float = 30) -> None:
    deadline = time.monotonic() + limit
    while not await check():
        assert time.monotonic() < deadline, f"{what}: did not happen in time"
        await asyncio.sleep(0.1)


def scores() -> list[dict[str, Any]]:
    """Better than the baseline, surely, on both data."""
    interval = {"confidence": "0.95", "low": "-2", "high": "-0.5"}
    baseline = {"value": "9", "difference": "-1", "intervals": [interval]}
    told = {"value": "8", "higherIsBetter": False, "count": 9, "baseline": baseline}
    return [
        {"suite": suite, "metric": metric, "slice": ""} | told
        for suite in ("new", "old")
        for metric in ("loss", "perplexity")
    ]


@pytest.mark.timeout(240)
async def test_an_alarm_becomes_the_version_that_serves(client: Client) -> None:
    await manifest(client, TRAINJOBS, "template", TEMPLATE)
    await manifest(client, DEPLOYMENTS, "chat", SPEC)
    serve = asyncio.create_task(play_ray_serve(client))
    try:
        before = await until(client, "the first version", lambda s: c.is_true(s.get("conditions", []), c.AVAILABLE))
        drift = {"version": before["stable"]["version"], "alarms": [ALARM], "active": ["input-length"]}
        await say(client, DEPLOYMENTS, "chat", {"drift": drift | {"snapshot": SNAPSHOT}})

        run = (await until(client, "training", stage("Training")))["retrain"]["current"]["id"]
        train = await appears(client, TRAINJOBS, run)
        assert train["spec"]["model"] == {"uri": "/models/a"}
        assert train["spec"]["suspend"] is False
        assert [one["uri"] for one in train["spec"]["data"]["sources"]] == ["/captured/1/train", "/corpus"]
        await until(client, "its TrainJob seen", lambda s: s["retrain"]["current"].get("trainJobUid"))
        model = {"uri": "/models/b", "digest": "sha256:b"}
        await say(client, TRAINJOBS, run, {"conditions": ended("Succeeded"), "model": model})

        await until(client, "evaluating", stage("Evaluating"))
        await appears(client, EVALJOBS, run)
        await say(client, EVALJOBS, run, {"conditions": ended("Succeeded"), "model": model, "metrics": scores()})

        after = await until(client, "promotion", lambda s: s["retrain"].get("model") == "/models/b")
        assert after["stable"]["reference"] == {"uri": "/models/b"}
        assert after["stable"]["version"] != before["stable"]["version"]
        [past] = after["retrain"]["history"]
        assert (past["stage"], past["alarm"], past["version"]) == ("Promoted", "alarm-1", after["stable"]["version"])
        job = await client.get(EVALJOBS, "default", run)
        assert c.is_true(job["status"]["conditions"], c.PASSED), "the operator's own verdict over those scores"

        async def told() -> bool:
            reasons = {event["reason"] for event in (await client.list(EVENTS, "default"))[0]}
            return {c.TRAINING, c.EVALUATING, c.ROLLING_OUT, c.PROMOTED} <= reasons

        await eventually("Events", told)
        assert await jobs(client) == sorted(["template", run, run]), "one alarm, one retrain"
        await client.delete(DEPLOYMENTS, "default", "chat")

        async def gone() -> bool:
            return await jobs(client) == ["template"]

        await eventually("its jobs go with it", gone)
    finally:
        serve.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serve
