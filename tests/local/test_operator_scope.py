"""The operator on the embedded API server: which namespaces it looks at, and what a run is given to report with."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_api.run import RUN_ENV
from slipway_local.apiserver.server import ApiServer
from slipway_operator.app import Operator
from slipway_operator.config import load
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.resource import NAMESPACES, RAYJOBS, SECRETS, TRAINJOBS, Json, Resource

SPEC = {
    "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
    "tokenizer": {"train": {}},
    "data": {"sources": [{"uri": "python://stdlib"}]},
    "training": {"steps": 10},
}


@contextlib.asynccontextmanager
async def operator_on(directory: Path, **config: Any) -> AsyncIterator[Client]:
    """A fresh API server with namespaces a, b and c, and an operator at work on it."""
    (directory / "key").write_bytes(b"0123456789abcdef")
    reports = {"listen": "127.0.0.1:0", "url": "http://127.0.0.1:1", "keyFile": str(directory / "key")}
    document = {
        "storage": {"uri": f"file://{directory}/storage"},
        "reports": reports | config.pop("reports", {}),
        "metrics": {"listen": "127.0.0.1:0"},
        "leaderElection": {"enabled": False},
        **config,
    }
    (directory / "operator.yaml").write_text(yaml.safe_dump(document))
    async with ApiServer(directory / "state") as server:
        (directory / "ca.crt").write_bytes(server.entrance.ca)  # any CA will do: nothing here reports
        connection = await load_config(str(server.entrance.kubeconfig))
        operator = Operator(load(directory / "operator.yaml"), connection)
        async with Client(connection) as client:
            for name in ("a", "b", "c"):
                await client.create(NAMESPACES, {"metadata": {"name": name}})
            running = asyncio.create_task(operator.run())
            try:
                yield client
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running


async def appears(client: Client, resource: Resource, namespace: str, name: str) -> Json:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(NotFound):
                return await client.get(resource, namespace, name)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(("watched", "untouched"), [(["a", "b"], ["c"]), ([], [])])
async def test_only_watched_namespaces_are_served(tmp_path: Path, watched: list[str], untouched: list[str]) -> None:
    async with operator_on(tmp_path, namespaces=watched) as client:
        for namespace in ("c", "a", "b"):  # the unwatched one first: it had the most time
            await client.create(TRAINJOBS, {"metadata": {"name": "job", "namespace": namespace}, "spec": SPEC})
        for namespace in sorted({"a", "b", "c"} - set(untouched)):
            await appears(client, RAYJOBS, namespace, "job-1")
        for namespace in untouched:
            with pytest.raises(NotFound):
                await client.get(RAYJOBS, namespace, "job-1")


async def test_a_run_gets_the_ca_of_its_report_endpoint_beside_its_token(tmp_path: Path) -> None:
    reports = {"url": "https://reports.example:8443", "caFile": str(tmp_path / "ca.crt")}
    async with operator_on(tmp_path, reports=reports) as client:
        await client.create(TRAINJOBS, {"metadata": {"name": "job", "namespace": "a"}, "spec": SPEC})
        ray_job = await appears(client, RAYJOBS, "a", "job-1")
        secret = await client.get(SECRETS, "a", "job-1-run")
    assert sorted(secret["data"]) == ["ca.crt", "report-token"]
    assert base64.b64decode(secret["data"]["ca.crt"]) == (tmp_path / "ca.crt").read_bytes()
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    run = json.loads(next(variable["value"] for variable in head["env"] if variable["name"] == RUN_ENV))
    (mount,) = head["volumeMounts"]
    assert run["report"]["caFile"] == f"{mount['mountPath']}/ca.crt"
    assert run["report"]["tokenFile"] == f"{mount['mountPath']}/report-token"
