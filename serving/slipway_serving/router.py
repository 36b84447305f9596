"""Which version answers a request, and what happens to it on the way. No HTTP, no Ray.

A request goes to one of the versions by weight. The draw is seeded by the request's id, so a client that repeats a
request with the same id comes to the same version. A version that fails before its first token is not the client's
problem: the next one answers, and the failure is counted against the one that failed.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from slipway_api.serving import RouterConfig, RouterUserConfig, WeightedVersion
from slipway_serving.feedback import FeedbackLog
from slipway_serving.keys import ApiKeys, RateLimit
from slipway_serving.openai.errors import ApiError
from slipway_serving.statistics import Statistics, pick


class Backend(Protocol):
    """A version's engine, wherever it runs."""

    def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """As EngineReplica.generate. May raise anything: then the version has failed."""
        ...

    async def embed(self, inputs: list[Any]) -> dict[str, Any]:
        """As EngineReplica.embed."""
        ...


@dataclass(frozen=True)
class Begun:
    """An answer that has begun: whose it is, and the pieces that follow."""

    version: str
    prompt_tokens: int
    echo: str
    pieces: AsyncIterator[dict[str, Any]]


class Router:
    """Versions, weights, limits: everything but the protocol that clients speak."""

    def __init__(self, config: RouterConfig, backend: Callable[[str], Backend]) -> None:
        """`backend(application)`: the engine behind a Serve application; raises while there is none."""
        self.config = config
        self.settings = RouterUserConfig(versions=[])
        self.statistics = Statistics()
        self.keys = ApiKeys(config.api_keys_file)
        self.rates = RateLimit()
        self.feedback = FeedbackLog(config.feedback_directory)
        self._backend = backend
        self._backends: dict[str, Backend] = {}

    def configure(self, settings: RouterUserConfig) -> None:
        """Take over weights, limits and defaults: of the next request on."""
        self.settings = settings
        known = {version.application for version in settings.versions}
        self._backends = {name: backend for name, backend in self._backends.items() if name in known}

    def candidates(self, request_id: str) -> list[WeightedVersion]:
        """The versions in the order that they are asked: the drawn one, then the others by weight."""
        versions = self.settings.versions
        if not versions:
            raise ApiError(503, "no_version", "no version of the model is served yet", retry_after=5)
        by_name = {version.name: version for version in versions}
        first = pick(list(by_name), [version.weight for version in versions], random.Random(request_id))
        rest = sorted((v for v in versions if v.name != first), key=lambda v: -v.weight)
        return [by_name[first], *rest]

    def find(self, version: WeightedVersion) -> Backend:
        """The engine of a version. Raises whatever keeps it from being reached."""
        if version.application not in self._backends:
            self._backends[version.application] = self._backend(version.application)
        return self._backends[version.application]

    async def begin(self, request: Mapping[str, Any], request_id: str) -> Begun:
        """Find a version that begins the answer. Raises ApiError: the client's mistake, or no version can."""
        last: ApiError | None = None
        for version in self.candidates(request_id):
            started = time.monotonic()
            self.statistics.began(version.name)
            try:
                stream = self.find(version).generate(dict(request)).__aiter__()
                first = await anext(stream)
            except Exception as error:  # a replica that died, an application that is not there
                self._failed(version.name, started)
                last = ApiError(502, "version_failed", f"version {version.name}: {type(error).__name__}: {error}")
                continue
            if "error" in first:
                refused = ApiError.of_wire(first["error"])
                self.statistics.ended(version.name, refused.status, time.monotonic() - started, 0, None)
                if refused.status < 500:
                    raise refused
                last = refused
                continue
            self.feedback.remember(request_id, version.name)
            start = first["start"]
            return Begun(
                version.name, start["prompt_tokens"], start["echo"], self._counted(version.name, started, start, stream)
            )
        assert last is not None
        raise last

    def _failed(self, name: str, started: float) -> None:
        self.statistics.ended(name, 502, time.monotonic() - started, 0, None)
        self._backends = {}  # handles to what has died are made anew

    async def _counted(
        self, name: str, started: float, start: dict[str, Any], stream: AsyncIterator[dict[str, Any]]
    ) -> AsyncIterator[dict[str, Any]]:
        """The pieces, counted; an error among them is raised as ApiError."""
        first: float | None = None
        tokens, status = 0, 499  # the client hung up, unless it turns out otherwise
        try:
            async for piece in stream:
                if first is None:
                    first = time.monotonic() - started
                    self.statistics.first(name, first, start["prompt_tokens"])
                if "error" in piece:
                    status = int(piece["error"]["status"])
                    raise ApiError.of_wire(piece["error"])
                tokens = int(piece["tokens"])
                yield piece
            status = 200
        except ApiError:
            raise
        except Exception as error:
            status = 502
            raise ApiError(502, "version_failed", f"version {name}: {type(error).__name__}: {error}") from error
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None and status == 499:
                await close()
            self.statistics.ended(name, status, time.monotonic() - started, tokens, first)


def new_request_id() -> str:
    """An id for a request that came without one."""
    return f"req-{uuid.uuid4().hex[:20]}"
