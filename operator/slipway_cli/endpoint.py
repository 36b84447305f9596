"""A Deployment's endpoint: where it answers, and one streamed chat completion from it.

Plain http.client: the reply is a stream of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html),
each `data:` line one chunk in OpenAI's shape, the last one `[DONE]`.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from slipway_api import conditions as c
from slipway_cli.errors import AnswerError, ModelError, TargetError, UsageError
from slipway_cli.session import Session
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.resource import Json

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 300.0  # a first token may wait for a replica that starts


@dataclass(frozen=True)
class Endpoint:
    """Where a Deployment answers, and under which model name."""

    name: str
    url: str
    api_key: str | None = None

    def chat(self, messages: Sequence[dict[str, str]], options: dict[str, Any]) -> Iterator[str]:
        """The pieces of the answer as they come. Raises TargetError or AnswerError."""
        body = {"model": self.name, "messages": list(messages), "stream": True, **options}
        connection, path = self._connect()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            connection.request("POST", path, json.dumps(body).encode(), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise AnswerError(_refusal(response.status, response.read(65536)), hint=_hint(response.status))
            yield from _pieces(response)
        except (OSError, http.client.HTTPException) as error:
            raise TargetError(
                f"{self.url} does not answer: {error}",
                hint=f"in a cluster: kubectl port-forward svc/{self.name}-serve-svc 8000, then --url http://127.0.0.1:8000",
            ) from error
        finally:
            connection.close()

    def _connect(self) -> tuple[http.client.HTTPConnection, str]:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{self.url!r} is not an http URL", hint="--url http://HOST:PORT")
        path = f"{parts.path.rstrip('/')}/v1/chat/completions"
        # The time limit is for one silence, of connecting and of each read.
        timeout = max(_CONNECT_SECONDS, _SILENCE_SECONDS)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context), path
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout), path


async def find(opened: Session, words: Sequence[str], *, url: str | None, api_key: str | None) -> Endpoint:
    """The endpoint of the Deployment that the words name. Raises ModelError while it answers nobody."""
    deployment = await deployment_of(opened, words, "chat")
    name = str(deployment["metadata"]["name"])
    status = deployment.get("status") or {}
    if url:
        return Endpoint(name, url, api_key)
    available = c.find_condition(status.get("conditions", []), c.AVAILABLE)
    if available is None or available["status"] != "True" or not status.get("url"):
        why = available["message"] if available else "the operator has not looked at it yet"
        raise ModelError(f"sdeploy/{name} does not answer: {why}", hint=f"slipway describe sdeploy/{name}")
    return Endpoint(name, str(status["url"]), api_key)


async def deployment_of(opened: Session, words: Sequence[str], command: str) -> Json:
    """The one Deployment (slipway.dev) that the words name."""
    kind, name = await opened.one(words)
    if (kind.resource.group, kind.resource.kind) != ("slipway.dev", "Deployment"):
        raise UsageError(
            f"this is about a Deployment, not a {kind.resource.kind}", hint=f"slipway {command} sdeploy/NAME"
        )
    try:
        return await opened.get(kind, name)
    except NotFound as error:
        raise AnswerError(error.message, hint="slipway get sdeploy") from error


def _pieces(response: http.client.HTTPResponse) -> Iterator[str]:
    for raw in response:
        line = raw.decode("utf-8", "replace").strip()
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise AnswerError(f"the answer broke off: {chunk['error'].get('message')}")
        for choice in chunk.get("choices") or []:
            piece = (choice.get("delta") or {}).get("content")
            if piece:
                yield str(piece)


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {body[:300].decode('utf-8', 'replace').strip()}"


def _hint(status: int) -> str:
    if status == 401:
        return "put an API key into the environment variable SLIPWAY_API_KEY"
    return "try again in a moment" if status in (429, 503) else ""
