"""The kinds of Serve applications of a Deployment (slipway_api.serving): `router`, `engine` and `watcher`.

Thin: the rules of a router are in router.py, those of an engine in replica.py, and neither knows Ray. A replica runs
its model in a thread of its own, so that health checks are answered while it computes.

Every process of every application imports this module, and so does the task that Serve builds an application in: torch
and scipy, seconds of CPU and hundreds of MiB, are imported only by the replicas that compute with them.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from slipway_api.serving import (
    APPLICATION_PREFIX_ENV,
    ENGINE_DEPLOYMENT,
    ROUTER_DEPLOYMENT,
    WATCHER_DEPLOYMENT,
    EngineConfig,
    RouterConfig,
    RouterUserConfig,
    WatcherConfig,
)
from slipway_serving import current, reporting
from slipway_serving.low_priority import at_low_priority
from slipway_serving.openai import access_log, http
from slipway_serving.router import Router

if TYPE_CHECKING:
    from slipway_serving.replica import EngineReplica

app: Starlette = http.build(current.get)


class HandleBackend:
    """An engine behind a Serve handle."""

    def __init__(self, application: str) -> None:
        name = os.environ.get(APPLICATION_PREFIX_ENV, "") + application
        handle: DeploymentHandle = serve.get_app_handle(name)
        # What is sent is plain data. Serve's default, cloudpickle, is made for functions and classes, and slower.
        plain = {"request_serialization": "pickle", "response_serialization": "pickle"}
        self._generate = handle.options(method_name="generate", stream=True, **plain)
        self._embed = handle.options(method_name="embed", **plain)

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Streams from one replica; closing the stream cancels the answer there."""
        response = self._generate.remote(request)
        try:
            async for piece in response:
                yield piece
        finally:
            response.cancel()

    async def embed(self, inputs: list[Any]) -> dict[str, Any]:
        """One call."""
        response = self._embed.remote(inputs)
        try:
            found: dict[str, Any] = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return found


async def send_to_watcher(application: str, batch: dict[str, Any]) -> dict[str, Any]:
    """As capture.Send."""
    handle: DeploymentHandle = serve.get_app_handle(os.environ.get(APPLICATION_PREFIX_ENV, "") + application)
    answer: dict[str, Any] = await handle.options(method_name="take").remote(batch)
    return answer


@serve.deployment(
    name=ROUTER_DEPLOYMENT,
    # It does nothing but pass on: no CPU of Ray's count, and many requests at a time. On the head: other pods may go.
    ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
    max_ongoing_requests=10_000,
    health_check_period_s=5,
)
@serve.ingress(app)
class RouterDeployment:
    """The endpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        # Where Serve writes the log of its replicas, and `slipway logs` reads it.
        access_log.write_to(logging.getLogger("ray.serve"))
        router = Router(RouterConfig.model_validate(config), HandleBackend)
        router.capture.send = send_to_watcher
        current.put(router)
        replica = serve.get_replica_context().replica_id.unique_id
        reporting.start(router.config, replica, router.statistics.told)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Weights, limits and defaults have changed."""
        current.get().configure(RouterUserConfig.model_validate(user_config))


@serve.deployment(name=ENGINE_DEPLOYMENT, health_check_period_s=5, graceful_shutdown_timeout_s=30)
class EngineDeployment:
    """One version of the model."""

    def __init__(self, config: dict[str, Any]) -> None:
        # See above; and at the expense of nobody who serves meanwhile.
        replica = at_low_priority(lambda: importlib.import_module("slipway_serving.replica"))

        gpu = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
        name = serve.get_replica_context().replica_id.unique_id
        self._replica: EngineReplica = replica.EngineReplica(EngineConfig.model_validate(config), gpu=gpu, name=name)

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """See EngineReplica."""
        stream = self._replica.generate(request)
        try:
            async for piece in stream:
                yield piece
        finally:
            await stream.aclose()  # type: ignore[attr-defined] # it is an async generator

    async def embed(self, inputs: list[Any]) -> dict[str, Any]:
        """See EngineReplica."""
        return await self._replica.embed(inputs)

    def check_health(self) -> None:
        """Raises when the engine has failed."""
        self._replica.check_health()


@serve.deployment(
    name=WATCHER_DEPLOYMENT,
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=100,
    health_check_period_s=5,
    graceful_shutdown_timeout_s=10,
)
class WatcherDeployment:
    """Judges the traffic of one version. It always starts: what it lacks is told in status, not by dying."""

    def __init__(self, config: dict[str, Any]) -> None:
        from slipway_serving.watcher.watcher import Watcher  # noqa: PLC0415 - see above

        read = WatcherConfig.model_validate(config)
        self._watcher = Watcher(read)
        threading.Thread(target=self._watcher.run, name="watcher", daemon=True).start()
        reporting.start_watching(read, self._watcher.status)

    async def take(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See Watcher."""
        return self._watcher.take(batch)


def router(args: dict[str, Any]) -> Any:
    """Serve application `router`; `args` is a RouterConfig."""
    return RouterDeployment.bind(args)  # type: ignore[attr-defined] # Serve has made a deployment of it


def engine(args: dict[str, Any]) -> Any:
    """Serve application of one version; `args` is an EngineConfig."""
    return EngineDeployment.bind(args)  # type: ignore[attr-defined]


def watcher(args: dict[str, Any]) -> Any:
    """Serve application `watcher`; `args` is a WatcherConfig."""
    return WatcherDeployment.bind(args)  # type: ignore[attr-defined]
