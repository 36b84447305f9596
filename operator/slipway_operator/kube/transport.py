"""One HTTP request to the API server, with everything that must hold for each of them.

A deadline on every request, the adaptive limiter before it, the write guard right before the sending, foreign errors
translated behind it. Reads are tried again; writes only after answers that prove that nothing was done (401, 429).
Whether to repeat any other write is the reconciler's decision, which reads the world first. Redirects are never
followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
import orjson
from yarl import URL

from slipway_operator.kube.backoff import Backoff
from slipway_operator.kube.config import ConnectionConfig
from slipway_operator.kube.errors import (
    ConfigError,
    KubeError,
    TooManyRequests,
    Transient,
    Unauthorized,
    error_from_status,
)
from slipway_operator.kube.limiter import AdaptiveLimiter
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import Json

log = logging.getLogger(__name__)

# The whole request has a deadline of its own; a server that does not even accept connections is found sooner.
CONNECT_SECONDS = 5.0
_TIMEOUTS = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)


@dataclass(frozen=True)
class Call:
    """One request as its caller means it."""

    verb: str  # for metrics
    method: str
    path: str
    query: Mapping[str, str] | None
    body: Json | None
    content_type: str
    accept: str

    @property
    def reads(self) -> bool:
        return self.method in ("GET", "HEAD")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


_guard_of_request: ContextVar[Callable[[], None] | None] = ContextVar("guard_of_request", default=None)


class _GuardedRequest(aiohttp.ClientRequest):
    """Asks the guard once more when the connection is there, right before the bytes go.

    A replica may be frozen while it makes a connection, and thawed when the lease has long been somebody else's.
    """

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        guard = _guard_of_request.get()
        if guard is not None:
            guard()
        return await super().send(conn)


class Connections:
    """The connection pool to one server, opened on first use."""

    def __init__(self, config: ConnectionConfig, user_agent: str) -> None:
        self._config = config
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        """The session; call it in the event loop that will use it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                request_class=_GuardedRequest,
                connector=aiohttp.TCPConnector(limit=0, ssl=self._config.tls or True),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Compression would cost both sides more CPU than it saves on a cluster's network.
                headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
                read_bufsize=2**20,
            )
            # It would send a PUT or DELETE again on its own when a kept connection breaks, past the guard. There is no
            # public switch; a test fails if this one loses its effect.
            self._session._retry_connection = False
        return self._session

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class Transport:
    """Sends calls over a pool of connections."""

    def __init__(
        self,
        config: ConnectionConfig,
        connections: Connections,
        *,
        limiter: AdaptiveLimiter | None,
        guard: Callable[[], None] | None,
        request_timeout: float,
        attempts: int,
        backoff: Backoff,
        rng: random.Random,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self.connections = connections
        self._limiter = limiter
        self._guard = guard
        self.request_timeout = request_timeout
        self._attempts = attempts
        self._backoff = backoff
        self._rng = rng
        self._metrics = metrics
        self._warned: set[str] = set()

    async def request(self, call: Call) -> bytes:
        """Tries until it worked, failed for good, or ran out of attempts or time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.request_timeout
        attempt, renewed = 0, False
        while True:
            attempt += 1
            try:
                return await self._attempt(call, deadline)
            except Unauthorized:
                if renewed or not await self._renew_credentials(deadline):
                    raise
                attempt, renewed = attempt - 1, True
            except (TooManyRequests, Transient) as error:
                # 429 proves that nothing was done; after any other failure a write may have been applied.
                repeatable = call.reads or isinstance(error, TooManyRequests)
                wait = max(error.retry_after, self._backoff.delay(attempt, self._rng))
                if not repeatable or attempt >= self._attempts or loop.time() + wait >= deadline:
                    raise
                await asyncio.sleep(wait)

    async def _renew_credentials(self, deadline: float) -> bool:
        with foreign_errors("renewing credentials"):
            async with asyncio.timeout_at(deadline):
                return await self._config.auth.refresh()

    async def _attempt(self, call: Call, deadline: float) -> bytes:
        loop = asyncio.get_running_loop()
        taken = await self._limiter.acquire(deadline) if self._limiter is not None else loop.time()
        failure: KubeError | None = None
        code = 0
        try:
            with foreign_errors(str(call)):
                async with asyncio.timeout_at(deadline):
                    response = await self.open(call, _TIMEOUTS)
                    with contextlib.closing(response):  # one that was read to its end keeps its connection
                        answer = await response.read()
            code = response.status
            if code < 300:
                self._log_warnings(response.headers.getall("Warning", ()))
                return answer
            failure = error_from_status(code, answer, response.headers)
            raise failure
        finally:
            self._metrics.requests.labels(call.verb, code).inc()
            self._metrics.request_seconds.labels(call.verb).observe(loop.time() - taken)
            if self._limiter is not None:
                throttled = isinstance(failure, TooManyRequests)
                after = failure.retry_after if isinstance(failure, TooManyRequests) else 0.0
                self._limiter.release(taken, throttled=throttled, retry_after=after)

    async def open(self, call: Call, timeouts: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        """Sends the call once and returns when the answer's head is there. Foreign errors are not translated yet."""
        config = self._config
        headers = {"Accept": call.accept, **await config.auth.headers()}
        data = None
        if call.body is not None:
            headers["Content-Type"] = call.content_type
            data = orjson.dumps(call.body)
        query = f"?{urlencode(call.query)}" if call.query else ""
        session = self.connections.session()
        guard = None if call.reads else self._guard
        if guard is not None:
            guard()  # before a connection is made for nothing
        _guard_of_request.set(guard)
        return await session.request(
            call.method,
            URL(config.server + call.path + query, encoded=True),
            data=data,
            headers=headers,
            timeout=timeouts,
            allow_redirects=False,  # a redirect would carry the token to another host
            proxy=config.proxy,
            server_hostname=config.server_name,
        )

    def _log_warnings(self, texts: Iterable[str]) -> None:
        """The server's Warning headers (deprecated or unknown fields), each text once."""
        for text in texts:
            if text not in self._warned and len(self._warned) < 100:
                self._warned.add(text)
                log.warning("the API server warns: %s", text)


@contextlib.contextmanager
def foreign_errors(what: str) -> Iterator[None]:
    """Errors of the HTTP library and of the system leave the block as ours."""
    try:
        yield
    except TimeoutError as error:  # before OSError, which it is a kind of
        raise Transient(0, "Timeout", f"{what}: no answer in time ({error})") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Transient(0, "Connection", f"{what}: {error or type(error).__name__}") from error
    except ConfigError as error:
        raise Unauthorized(0, "NoCredentials", str(error)) from error
