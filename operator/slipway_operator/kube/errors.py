"""What can go wrong when talking to an API server: one class for each decision that a caller makes.

Errors of the HTTP library are chained here and never leak out of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson


class KubeError(Exception):
    """An answer that is not a success. `status` is the HTTP status, 0 when there was no answer at all."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(status, reason, message)
        self.status = status
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason} ({self.status}): {self.message}" if self.status else f"{self.reason}: {self.message}"


class NotFound(KubeError):  # noqa: N818 - the names of the API's own reasons, as they read in `except NotFound`
    """The object, or the whole resource (its CRD), does not exist."""


class AlreadyExists(KubeError):  # noqa: N818
    """A create met an object of that name."""


class Conflict(KubeError):  # noqa: N818
    """A precondition failed, or another field manager owns the field: read again and decide again."""


class Expired(KubeError):  # noqa: N818
    """The resourceVersion or the continue token is too old (410): list again."""


class TooManyRequests(KubeError):  # noqa: N818
    """The server sheds load (429). Nothing was done. `retry_after` is in seconds, 0 when the server named none."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(status, reason, message)
        self.retry_after = retry_after


class Forbidden(KubeError):  # noqa: N818
    """Authenticated, but not allowed."""


class Unauthorized(KubeError):  # noqa: N818
    """The credentials were not accepted."""


class Invalid(KubeError):  # noqa: N818
    """The request can never succeed as it is (400, 413, 422)."""


class Transient(KubeError):  # noqa: N818
    """A server error, a broken connection or a deadline. A write may or may not have been applied."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(status, reason, message)
        self.retry_after = retry_after


class BrokenStream(Transient):
    """A watch sent something that is not an event, so that an event may be lost: list again."""


class NotLeading(KubeError):  # noqa: N818
    """A write was stopped before it was sent, because this process no longer holds its lease."""


class ConfigError(Exception):
    """The kubeconfig, or the service account in a pod, cannot be used; the message says what to change."""


_BY_STATUS: dict[int, type[KubeError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Expired,
    413: Invalid,
    422: Invalid,
}


def error_from_status(
    http_status: int, body: bytes | dict[str, Any] | None, headers: Mapping[str, str] | None = None
) -> KubeError:
    """The error that an answer means.

    `body` is the answer's bytes or a decoded Status object (as in a watch's ERROR event). A body that is not a Status,
    such as a proxy's HTML page, only becomes the message.
    """
    status = _status_object(body)
    reason = str(status.get("reason") or f"HTTP{http_status}")
    message = str(status.get("message") or _excerpt(body) or "no message")
    retry_after = _retry_after(status, headers or {})
    if http_status == 429:
        return TooManyRequests(http_status, reason, message, retry_after)
    if http_status == 408 or http_status >= 500:
        return Transient(http_status, reason, message, retry_after)
    if http_status == 409 and reason == "AlreadyExists":
        return AlreadyExists(http_status, reason, message)
    if reason == "Expired":
        return Expired(http_status, reason, message)
    return _BY_STATUS.get(http_status, KubeError)(http_status, reason, message)


def _status_object(body: bytes | dict[str, Any] | None) -> dict[str, Any]:
    if isinstance(body, bytes):
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError:
            return {}
    return body if isinstance(body, dict) else {}


def _excerpt(body: bytes | dict[str, Any] | None) -> str:
    return body[:300].decode("utf-8", "replace") if isinstance(body, bytes) else ""


def _retry_after(status: dict[str, Any], headers: Mapping[str, str]) -> float:
    """Seconds from the Retry-After header (its number form, the one that API servers send) or from the Status."""
    for value in (headers.get("Retry-After"), (status.get("details") or {}).get("retryAfterSeconds")):
        try:
            return max(0.0, float(value))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
    return 0.0
