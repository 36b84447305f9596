"""The operator on the local control plane, which has neither Kueue nor pods: it works, and says what it lacks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slipway_api import conditions as c
from slipway_local.apiserver.server import ApiServer
from slipway_operator.app import Operator
from slipway_operator.config import LeaderElectionConfig, MetricsConfig, OperatorConfig, ReportsConfig, StorageConfig
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import Invalid, NotFound
from slipway_operator.kube.resource import DEPLOYMENTS, EVALJOBS, EVENTS, RAYJOBS, RAYSERVICES, SECRETS, TRAINJOBS

SPEC: dict[str, Any] = {
    "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
    "tokenizer": {"train": {}},
    "data": {"sources": [{"uri": "python://stdlib"}]},
    "training": {"steps": 10},
}


@dataclass
class Cluster:
    """A client, and what a test asks of it."""

    client: Client

    async def create(self, name: str, **spec: Any) -> None:
        metadata = {"name": name, "namespace": "default"}
        body = {"apiVersion": TRAINJOBS.api_version, "kind": "TrainJob", "metadata": metadata, "spec": SPEC | spec}
        await self.client.create(TRAINJOBS, body)

    async def edit(self, name: str, **spec: Any) -> None:
        await self.client.merge_patch(TRAINJOBS, "default", name, {"spec": spec})

    async def running(self, name: str) -> tuple[str, str]:
        """(reason, message) of Running."""
        job = await self.client.get(TRAINJOBS, "default", name)
        found = c.find_condition((job.get("status") or {}).get("conditions", []), c.RUNNING)
        return (found["reason"], found["message"]) if found else ("", "")

    async def until(self, name: str, reason: str, limit: float = 60) -> str:
        """The message of Running once it has this reason."""
        deadline = time.monotonic() + limit
        while (told := await self.running(name))[0] != reason:
            assert time.monotonic() < deadline, f"{name} is {told}"
            await asyncio.sleep(0.05)
        return told[1]

    async def ray_jobs(self) -> list[dict[str, Any]]:
        return (await self.client.list(RAYJOBS, "default"))[0]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
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
        async with Client(connection) as client:
            yield Cluster(client)
        operator.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await operator


async def test_no_pods_are_served_and_nothing_waits_for_them(cluster: Cluster) -> None:
    with pytest.raises(NotFound):
        await cluster.client.raw("GET", "/api/v1/pods")
    await cluster.create("plain")
    await cluster.until("plain", c.WAITING_FOR_RESOURCES)
    [ray_job] = await cluster.ray_jobs()
    assert ray_job["spec"]["suspend"] is False


async def test_a_queue_without_kueue_waits_says_so_and_can_be_given_up(cluster: Cluster) -> None:
    await cluster.create("queued", queue="team-a")
    message = await cluster.until("queued", c.WAITING_FOR_KUEUE)
    assert "spec.queue is team-a, but Kueue (kueue.x-k8s.io) is not served" in message
    assert await cluster.ray_jobs() == []
    await eventually(lambda: has_event(cluster, c.WAITING_FOR_KUEUE))
    await cluster.edit("queued", suspend=True)
    await cluster.until("queued", c.SUSPENDED_BY_USER)
    await cluster.edit("queued", queue=None, suspend=False)
    await cluster.until("queued", c.WAITING_FOR_RESOURCES)
    [ray_job] = await cluster.ray_jobs()
    assert ray_job["spec"]["suspend"] is False


async def test_the_queue_changes_only_while_the_job_is_suspended(cluster: Cluster) -> None:
    await cluster.create("fixed", queue="team-a")
    for change in ({"queue": "team-b"}, {"queue": None}, {"queue": "team-b", "suspend": True}):
        with pytest.raises(Invalid, match="queue may change only while suspend is true"):
            await cluster.edit("fixed", **change)
    with pytest.raises(Invalid, match="queue"):
        await cluster.create("bad", queue="Not_A_Label")
    await cluster.edit("fixed", suspend=True)
    await cluster.edit("fixed", queue="team-b")


async def has_event(cluster: Cluster, reason: str) -> bool:
    return any(event["reason"] == reason for event in (await cluster.client.list(EVENTS, "default"))[0])


async def eventually(check: Callable[[], Any], limit: float = 30) -> None:
    deadline = time.monotonic() + limit
    while not await check():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.05)


async def test_a_cross_validation_makes_its_jobs_and_they_go_with_it(cluster: Cluster) -> None:
    client = cluster.client
    await cluster.create("base", suspend=True)
    metadata = {"name": "cv", "namespace": "default"}
    spec = {
        "model": {"trainJob": {"name": "base"}},
        "suites": [{"name": "held-out", "languageModeling": {}}],
        "crossValidation": {"folds": 2},
        "suspend": True,
    }
    await client.create(
        EVALJOBS, {"apiVersion": EVALJOBS.api_version, "kind": "EvalJob", "metadata": metadata, "spec": spec}
    )

    async def reason() -> str | None:
        status = (await client.get(EVALJOBS, "default", "cv")).get("status") or {}
        return (c.find_condition(status.get("conditions", []), c.RUNNING) or {}).get("reason")

    async def suspended() -> dict[tuple[str, str], bool]:
        found = [*(await client.list(TRAINJOBS, "default"))[0], *(await client.list(EVALJOBS, "default"))[0]]
        folds = [job for job in found if "-fold-" in job["metadata"]["name"]]
        return {(job["kind"], job["metadata"]["name"]): job["spec"]["suspend"] for job in folds}

    async def told_suspended() -> bool:
        return await reason() == c.SUSPENDED_BY_USER

    await eventually(told_suspended)
    assert await suspended() == {}
    await client.merge_patch(EVALJOBS, "default", "cv", {"spec": {"suspend": False}})
    names = [(kind, f"cv-fold-{fold}") for kind in ("TrainJob", "EvalJob") for fold in range(2)]

    async def all_are(value: bool) -> bool:
        return await suspended() == dict.fromkeys(names, value)

    await eventually(lambda: all_are(False))
    await cluster.until("cv-fold-0", c.WAITING_FOR_RESOURCES)
    made = await client.get(TRAINJOBS, "default", "cv-fold-1")
    assert made["spec"]["data"]["split"] == {"folds": 2, "fold": 1, "seed": 0}
    await client.merge_patch(EVALJOBS, "default", "cv", {"spec": {"suspend": True}})
    await eventually(lambda: all_are(True))
    await client.delete(EVALJOBS, "default", "cv")

    async def gone() -> bool:
        return await suspended() == {}

    await eventually(gone)


async def test_a_compression_is_a_run_that_stops_and_goes_with_its_deployment(cluster: Cluster) -> None:
    client = cluster.client
    held_out = {"sources": [{"uri": "python://stdlib"}]}
    spec = {"model": {"uri": "/models/m"}, "compression": {"int8Dynamic": {}, "heldOut": held_out}}
    metadata = {"name": "chat", "namespace": "default"}
    body = {"apiVersion": DEPLOYMENTS.api_version, "kind": "Deployment", "metadata": metadata, "spec": spec}
    await client.create(DEPLOYMENTS, body)

    async def until(reason: str) -> dict[str, Any]:
        status: dict[str, Any] = {}

        async def reached() -> bool:
            nonlocal status
            status = (await client.get(DEPLOYMENTS, "default", "chat")).get("status") or {}
            return (c.find_condition(status.get("conditions", []), c.COMPRESSED) or {}).get("reason") == reason

        await eventually(reached)
        return status

    async def names() -> list[str]:
        return sorted(job["metadata"]["name"] for job in await cluster.ray_jobs())

    async def are(wanted: list[str]) -> bool:
        return await names() == wanted

    status = await until(c.COMPRESSING)
    assert await names() == ["chat-c1"]
    assert (await client.get(SECRETS, "default", "chat-c1-run"))["data"]["report-token"]
    assert status["state"] == "Compressing"
    assert status["compression"]["attempts"] == [{"number": 1, "startTime": status["compression"]["startTime"]}]

    # Superseded: what ran goes, and only then the next one comes.
    await client.merge_patch(DEPLOYMENTS, "default", "chat", {"spec": {"compression": {"emulate": True}}})
    await eventually(lambda: are(["chat-c2"]))
    with pytest.raises(NotFound):
        await client.get(SECRETS, "default", "chat-c1-run")

    # The driver ends with EX_CONFIG: the user's to mend.
    ended = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}
    message = "Job entrypoint command failed with exit code 78, last available logs: error: no such model"
    made = (await cluster.ray_jobs())[0] | {"status": {**ended, "message": message}}
    made["metadata"].pop("managedFields", None)
    await client.apply_status(RAYJOBS, made, field_manager="kuberay")
    status = await until(c.COMPRESSION_FAILED)
    assert status["rejected"][0]["reason"] == c.COMPRESSION_FAILED
    assert "no such model" in status["rejected"][0]["message"]
    assert (await client.list(RAYSERVICES, "default"))[0] == []
    assert await names() == ["chat-c2"]

    await client.delete(DEPLOYMENTS, "default", "chat")
    await eventually(lambda: are([]))
