"""A version behind ray.serve.llm, asked as an engine's replica is asked (replica.py). Knows neither HTTP, Ray nor vLLM.

The first event is waited for before the answer counts as begun, so that the router may still ask another version.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from slipway_serving.openai.errors import ApiError
from slipway_serving.vllm.translation import Pieces, events, to_openai


class Server(Protocol):
    """What holds the model."""

    def ask(self, method: str, body: dict[str, Any]) -> AsyncIterator[Any]:
        """The items that `chat` or `completions` yields; closing the stream cancels the answer."""
        ...


class VllmAdaptor:
    """Translates, and nothing else."""

    def __init__(self, model: str, server: Server) -> None:
        """`model`: its id in ray.serve.llm."""
        self._model = model
        self._server = server

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """As EngineReplica.generate."""
        try:
            body = to_openai(request, self._model)
            pieces = Pieces(request["prompt"] if request.get("echo") else "")
            stream = self._server.ask("chat" if "messages" in request else "completions", body)
            try:
                async for item in stream:
                    for event in events(item):
                        for piece in pieces.of(event):
                            yield piece
            finally:
                close: Callable[[], Any] | None = getattr(stream, "aclose", None)
                if close is not None:
                    await close()
        except ApiError as error:
            yield {"error": error.to_wire()}

    async def embed(self, inputs: list[Any]) -> dict[str, Any]:
        """A model that generates has no embeddings in vLLM."""
        return {"error": ApiError(400, "not_supported", "engine.vllm serves no embeddings").to_wire()}
