"""Which version answers a request, and what happens to it on the way. No HTTP, no Ray.

A request goes to one of the versions by weight. The draw is seeded by the request's id, so a client that repeats a
request with the same id comes to the same version. A version that fails before its first token is not the client's
problem: the next one answers, and the failure is counted against the one that failed.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from slipway_api.serving import RouterConfig, RouterUserConfig, WeightedVersion
from slipway_serving.capture import Capture
from slipway_serving.counted import CountedPieces, close
from slipway_serving.feedback import FeedbackLog
from slipway_serving.keys import ApiKeys, RateLimit
from slipway_serving.openai.errors import ApiError
from slipway_serving.statistics import Statistics, pick

_RETRY_SECONDS = 10  # a replica that is starting is not there the next moment


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
    pieces: CountedPieces


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
        self.capture = Capture()
        self.statistics.registry.register(self.capture)
        self._backend = backend
        self._backends: dict[str, Backend] = {}

    def configure(self, settings: RouterUserConfig) -> None:
        """Take over weights, limits and defaults: of the next request on."""
        self.settings = settings
        self.statistics.weighted({version.name: version.weight for version in settings.versions})
        self.capture.application = settings.capture
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
        came = time.monotonic()
        asked = {**request, "signals": True} if self.capture.application else dict(request)
        for version in self.candidates(request_id):
            started = time.monotonic()
            self.statistics.began(version.name)
            patience = asyncio.timeout(self.settings.start_timeout_seconds - (started - came))
            stream: AsyncIterator[dict[str, Any]] | None = None
            try:
                stream = self.find(version).generate(asked).__aiter__()
                async with patience:
                    first = await anext(stream)
                refused = ApiError.of_wire(first["error"]) if "error" in first else None
                seen = self.capture.watch(request, request_id, version.name)
                begun = None if refused else self._begun(version.name, first, stream, started, seen)
            except asyncio.CancelledError:  # the client hung up while the version had said nothing
                await close(stream)
                self.statistics.left(version.name)
                raise
            except Exception as error:  # a replica that died, an application that is not there, or that says nonsense
                await close(stream)
                if patience.expired():  # another version would only be asked after the client has gone
                    self.statistics.ended(version.name, 503, time.monotonic() - started, 0, None)
                    raise self.not_started(version.name) from None
                self._failed(version.name, started)
                last = ApiError(502, "version_failed", f"version {version.name}: {type(error).__name__}: {error}")
                continue
            if refused is not None:
                self.statistics.ended(version.name, refused.status, time.monotonic() - started, 0, None)
                if refused.status < 500:
                    raise refused
                last = refused
                continue
            assert begun is not None
            self.feedback.remember(request_id, version.name)
            return begun
        assert last is not None
        raise last

    def _begun(
        self,
        name: str,
        message: Any,
        stream: AsyncIterator[dict[str, Any]],
        started: float,
        seen: Callable[[dict[str, Any]], None] | None,
    ) -> Begun:
        said = message.pop("start")
        waited, age = time.monotonic() - started, said.get("age_seconds", math.inf)
        if age < waited:  # it was started while this request waited
            self.statistics.cold_start(name, waited, born=time.monotonic() - age)
        prompt_tokens = int(said["prompt_tokens"])
        first = message or None  # the first piece may come with the start
        pieces = CountedPieces(
            self.statistics, name, stream, started=started, prompt_tokens=prompt_tokens, first=first, seen=seen
        )
        if "load" in said:
            self.statistics.engines.heard(name, said["load"])
        return Begun(name, prompt_tokens, str(said["echo"]), pieces)

    def not_started(self, name: str) -> ApiError:
        """The answer to a request that has waited long enough."""
        return ApiError(
            503,
            "starting",
            f"version {name}: no replica began an answer within {self.settings.start_timeout_seconds:g} s; one may be "
            "starting: try again",
            retry_after=_RETRY_SECONDS,
        )

    def _failed(self, name: str, started: float) -> None:
        self.statistics.ended(name, 502, time.monotonic() - started, 0, None)
        self._backends = {}  # handles to what has died are made anew


def new_request_id() -> str:
    """An id for a request that came without one."""
    return f"req-{uuid.uuid4().hex[:20]}"
