"""API keys from a file, and how many requests each may send in a minute."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from slipway_serving.openai.errors import ApiError

_LOOK_SECONDS = 5.0
_MOST_CLIENTS = 10_000


class ApiKeys:
    """The keys of a mounted Secret, one a line; read again when the file changes. No file: whoever asks is let in."""

    def __init__(self, file: str | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = Path(file) if file else None
        self._clock = clock
        self._looked = float("-inf")
        self._stamp: tuple[int, int] | None = None
        self._digests: tuple[bytes, ...] = ()

    def check(self, authorization: str) -> str:
        """Who asks, as a digest that may be logged. Raises ApiError 401."""
        if self._file is None:
            return ""
        self._refresh()
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer" and key:
            digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
            # All are compared, whichever it is: the time tells nothing.
            if sum(hmac.compare_digest(digest, known) for known in self._digests):
                return digest.hex()[:12]
            raise ApiError(401, "invalid_api_key", "the API key is not one of this endpoint's")
        raise ApiError(401, "missing_api_key", "send an API key: Authorization: Bearer KEY")

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        assert self._file is not None
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                lines = self._file.read_text().split()
                self._digests = tuple(hashlib.sha256(line.encode()).digest() for line in lines)
                self._stamp = stamp
        except OSError:  # it is being replaced; what was known stays, and before anything was known nobody is let in
            return


class RateLimit:
    """A bucket for each client that fills evenly over a minute. 0 a minute: no limit."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (requests left, at)

    def take(self, client: str, per_minute: int) -> None:
        """One request. Raises ApiError 429 with the seconds until there is room."""
        if per_minute == 0:
            return
        now = self._clock()
        left, at = self._buckets.pop(client, (float(per_minute), now))
        left = min(float(per_minute), left + (now - at) * per_minute / 60)
        if left < 1:
            self._buckets[client] = (left, now)
            wait = max(1, round((1 - left) * 60 / per_minute + 0.5))
            raise ApiError(429, "rate_limit_exceeded", f"more than {per_minute} requests in a minute", retry_after=wait)
        self._buckets[client] = (left - 1, now)
        while len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
