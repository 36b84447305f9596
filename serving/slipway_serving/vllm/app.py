"""The Serve application of a version that vLLM holds (slipway_api.serving): an adaptor before ray.serve.llm's server.

Not run where this was written: vLLM does not fit beside the pinned torch, and there was no GPU. What is tested is the
configuration against ray.serve.llm's own classes, and the adaptor against a server that speaks the same protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from slipway_api.serving import ENGINE_DEPLOYMENT, VllmConfig
from slipway_serving.vllm.adaptor import VllmAdaptor
from slipway_serving.vllm.config import llm_config


class HandleServer:
    """ray.serve.llm's server behind a Serve handle."""

    def __init__(self, handle: DeploymentHandle, requests: dict[str, Any]) -> None:
        """`requests`: method -> the class of its requests."""
        self._handle = handle
        self._requests = requests

    async def ask(self, method: str, body: dict[str, Any]) -> AsyncIterator[Any]:
        """See adaptor.Server."""
        response = self._handle.options(method_name=method, stream=True).remote(self._requests[method](**body))
        try:
            async for item in response:
                yield item
        finally:
            response.cancel()


@serve.deployment(
    name=ENGINE_DEPLOYMENT,
    ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},  # it only passes on
    max_ongoing_requests=10_000,
    health_check_period_s=5,
)
class VllmDeployment:
    """One version of the model."""

    def __init__(self, version: str, server: DeploymentHandle, requests: dict[str, Any] | None = None) -> None:
        """`requests`: classes of requests by method. Default: ray.serve.llm's, which need vLLM."""
        if requests is None:
            from ray.serve.llm import openai_api_models as models  # noqa: PLC0415 - only where vLLM is installed

            requests = {"chat": models.ChatCompletionRequest, "completions": models.CompletionRequest}
        self._adaptor = VllmAdaptor(version, HandleServer(server, requests))

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """See VllmAdaptor."""
        stream = self._adaptor.generate(request)
        try:
            async for piece in stream:
                yield piece
        finally:
            await stream.aclose()  # type: ignore[attr-defined] # it is an async generator

    async def embed(self, inputs: list[Any]) -> dict[str, Any]:
        """See VllmAdaptor."""
        return await self._adaptor.embed(inputs)


def engine(args: dict[str, Any]) -> Any:
    """Serve application of one version; `args` is a VllmConfig. Raises ImportError where vLLM is not installed."""
    from ray.serve.llm import LLMConfig, build_llm_deployment  # noqa: PLC0415 - only where vLLM is installed

    config = VllmConfig.model_validate(args)
    server = build_llm_deployment(LLMConfig(**llm_config(config)))
    return VllmDeployment.bind(config.version, server)  # type: ignore[attr-defined] # Serve has made a deployment of it
