"""The two kinds of Serve applications of a Deployment (slipway_api.serving): `router` and `engine`.

Thin: the rules of a router are in router.py, those of an engine in replica.py, and neither knows Ray. A replica runs
its model in a thread of its own, so that health checks are answered while it computes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from slipway_api.serving import (
    APPLICATION_PREFIX_ENV,
    ENGINE_DEPLOYMENT,
    ROUTER_DEPLOYMENT,
    EngineConfig,
    RouterConfig,
    RouterUserConfig,
)
from slipway_serving import current, reporting
from slipway_serving.openai import http
from slipway_serving.replica import EngineReplica
from slipway_serving.router import Router

app: FastAPI = http.build(current.get)


class HandleBackend:
    """An engine behind a Serve handle."""

    def __init__(self, application: str) -> None:
        name = os.environ.get(APPLICATION_PREFIX_ENV, "") + application
        self._handle: DeploymentHandle = serve.get_app_handle(name)

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Streams from one replica; closing the stream cancels the answer there."""
        response = self._handle.options(method_name="generate", stream=True).remote(request)
        try:
            async for piece in response:
                yield piece
        finally:
            response.cancel()

    async def embed(self, inputs: list[Any]) -> dict[str, Any]:
        """One call."""
        found: dict[str, Any] = await self._handle.options(method_name="embed").remote(inputs)
        return found


@serve.deployment(
    name=ROUTER_DEPLOYMENT,
    # It does nothing but pass on: no CPU of Ray's count, and many requests at a time.
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=10_000,
    health_check_period_s=5,
)
@serve.ingress(app)
class RouterDeployment:
    """The endpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        router = Router(RouterConfig.model_validate(config), HandleBackend)
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
        gpu = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._replica = EngineReplica(EngineConfig.model_validate(config), gpu=gpu)

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


def router(args: dict[str, Any]) -> Any:
    """Serve application `router`; `args` is a RouterConfig."""
    return RouterDeployment.bind(args)  # type: ignore[attr-defined] # Serve has made a deployment of it


def engine(args: dict[str, Any]) -> Any:
    """Serve application of one version; `args` is an EngineConfig."""
    return EngineDeployment.bind(args)  # type: ignore[attr-defined]
