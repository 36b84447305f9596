"""HTTPS requests to a control plane that is just starting, from code that has no event loop.

Everything else talks to an API server through `slipway_operator.kube.client`.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway_local.kubernetes.certificates import KeyPair


class AdminError(Exception):
    """The server said no (`code`), or did not answer (code 0)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}" if code else message)
        self.code = code


@dataclass(frozen=True, slots=True)
class AdminClient:
    """A way to one server under one identity."""

    url: str
    context: ssl.SSLContext

    @classmethod
    def by_certificate(cls, url: str, ca: Path, pair: KeyPair | None) -> AdminClient:
        """With a client certificate, or without any identity."""
        context = ssl.create_default_context(cafile=str(ca))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return cls(url, context)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        *,
        seconds: float = 30.0,
    ) -> bytes:
        """The body of the answer. Raises AdminError."""
        request = urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": content_type}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=seconds, context=self.context) as response:
                answer: bytes = response.read()
                return answer
        except urllib.error.HTTPError as error:
            raise AdminError(error.code, f"{method} {path}: {_message(error.read())}") from error
        except OSError as error:
            raise AdminError(0, f"{method} {path}: {error}") from error

    def json(self, method: str, path: str, document: Any = None, content_type: str = "application/json") -> Any:
        """The answer as JSON. Raises AdminError."""
        body = None if document is None else json.dumps(document).encode()
        return json.loads(self.send(method, path, body, content_type))


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode(errors="replace")
