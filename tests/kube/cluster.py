"""One namespace of a real API server, seen by an administrator, and the operator under test in it.

The operator runs in this process and event loop, built exactly as its entry point builds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway_api import conditions as c
from slipway_operator.app import Operator
from slipway_operator.config import (
    LeaderElectionConfig,
    MetricsConfig,
    NetworkPolicyConfig,
    OperatorConfig,
    PoolConfig,
    ReportsConfig,
    StorageConfig,
)
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import ConnectionConfig
from slipway_operator.kube.errors import Conflict, NotFound, Transient
from slipway_operator.kube.resource import NAMESPACES, PODS, RAYJOBS, TRAINJOBS, Resource

RAYCLUSTERS = Resource("ray.io", "v1", "rayclusters", "RayCluster")
RUN_KEY = b"0123456789abcdef0123456789abcdef"
POLICY = NetworkPolicyConfig(
    operator_namespace="slipway-system",
    operator_labels={"app": "slipway"},
    reports_port=8443,
    ray_operator_namespace="kuberay-system",
)
SPEC: dict[str, Any] = {
    "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
    "tokenizer": {"train": {}},
    "data": {"sources": [{"uri": "python://stdlib"}]},
    "training": {"steps": 10, "globalBatchSize": 16, "microBatchSize": 4},
    "retry": {"limit": 3, "backoffSeconds": 1},
}

Check = Callable[[], Awaitable[Any]]


async def eventually(check: Check, limit: float = 60.0) -> Any:
    """What `check` returns once that is true. A server that is down for a moment is asked again."""
    deadline = time.monotonic() + limit
    while True:
        try:
            found = await check()
        except (NotFound, Transient, Conflict) as error:
            found = None
            last: object = error
        else:
            last = found
        if found:
            return found
        assert time.monotonic() < deadline, f"did not happen in {limit:g} s: {last}"
        await asyncio.sleep(0.05)


@dataclass
class Cluster:
    """A namespace and an administrator's client."""

    client: Client
    namespace: str

    @classmethod
    async def make(cls, client: Client, namespace: str, **labels: str) -> Cluster:
        """A new namespace."""
        metadata = {"name": namespace, "labels": {name.replace("__", "/"): value for name, value in labels.items()}}
        await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        return cls(client, namespace)

    async def create(self, name: str, **spec: Any) -> dict[str, Any]:
        """A TrainJob."""
        metadata = {"name": name, "namespace": self.namespace}
        body = {"apiVersion": TRAINJOBS.api_version, "kind": "TrainJob", "metadata": metadata, "spec": SPEC | spec}
        return await self.client.create(TRAINJOBS, body)

    async def make_object(self, resource: Resource, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        """An object of one of our kinds."""
        metadata = {"name": name, "namespace": self.namespace}
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "spec": spec}
        return await self.client.create(resource, body)

    async def change(self, resource: Resource, name: str, patch: dict[str, Any]) -> None:
        """What a user would change."""
        await self.client.merge_patch(resource, self.namespace, name, patch)

    async def all(self, resource: Resource, selector: str | None = None) -> list[dict[str, Any]]:
        """All objects of a kind in the namespace."""
        return (await self.client.list(resource, self.namespace, label_selector=selector))[0]

    async def status(self, name: str) -> dict[str, Any]:
        """The status of a TrainJob; empty before the first one."""
        return (await self.client.get(TRAINJOBS, self.namespace, name)).get("status") or {}

    async def condition(self, name: str, type_: str = c.RUNNING) -> tuple[str, str, str]:
        """(status, reason, message) of a condition of a TrainJob."""
        found = c.find_condition((await self.status(name)).get("conditions", []), type_)
        return (found["status"], found["reason"], found["message"]) if found else ("", "", "")

    async def until(self, name: str, reason: str, limit: float = 60.0) -> str:
        """The message of Running once it has this reason."""
        deadline = time.monotonic() + limit
        while (told := await self.condition(name))[1] != reason:
            assert time.monotonic() < deadline, f"{name} is not {reason} after {limit:g} s, but {told}"
            await asyncio.sleep(0.05)
        return told[2]

    async def outcomes(self, name: str) -> list[str | None]:
        """How the attempts of a TrainJob ended."""
        return [record.get("outcome") for record in (await self.status(name)).get("attempts", [])]

    async def pods(self, name: str, attempt: int = 1) -> list[dict[str, Any]]:
        """The pods of one attempt of a TrainJob."""
        return await self.all(PODS, f"slipway.dev/trainjob={name},slipway.dev/attempt={attempt}")

    async def set_status(self, resource: Resource, name: str, **status: Any) -> None:
        """What whoever owns the status would write."""
        await self.client.merge_patch(resource, self.namespace, name, {"status": status}, subresource="status")

    async def ray_job_status(self, name: str, **status: Any) -> None:
        """What KubeRay would write."""
        await self.set_status(RAYJOBS, name, **status)


@contextlib.asynccontextmanager
async def operating(
    connection: ConnectionConfig,
    folder: Path,
    namespace: str | None,
    *,
    reports: str = "127.0.0.1:0",
    network_policy: NetworkPolicyConfig | None = None,
    pools: Sequence[PoolConfig] = (),
) -> AsyncIterator[asyncio.Task[None]]:
    """The operator at work, through this connection; `folder` is for its key. Raises what ended it too early."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key").write_bytes(RUN_KEY)
    config = OperatorConfig(
        storage=StorageConfig(uri=f"file://{folder}/storage"),
        reports=ReportsConfig(listen=reports, url=f"http://{reports}", key_file=folder / "key"),
        metrics=MetricsConfig(listen="127.0.0.1:0"),
        leader_election=LeaderElectionConfig(enabled=False),
        namespaces=[namespace] if namespace else [],
        network_policy=network_policy,
        pools=list(pools),
    )
    operator = asyncio.create_task(Operator(config, connection).run())
    try:
        yield operator
        assert not operator.done() or operator.result() is None
    finally:
        operator.cancel()
        await asyncio.wait({operator})
