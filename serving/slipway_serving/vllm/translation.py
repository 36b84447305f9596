"""Between the router's requests and pieces (replica.py) and the OpenAI protocol that ray.serve.llm speaks. Pure.

ray.serve.llm answers a streamed request with lists of server-sent events, or with an error object in its place. Usage
is asked for with every event (`continuous_usage_stats`), because the router counts tokens and not events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from slipway_serving.openai.errors import ApiError

_PASSED = ("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty")
_SOMETIMES = ("top_k", "seed", "stop")


def to_openai(request: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The body of a completion or chat completion. Raises ApiError for what vLLM cannot be asked."""
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **{name: request[name] for name in _PASSED if name in request},
        **{name: request[name] for name in _SOMETIMES if request.get(name)},
    }
    if request.get("seed") is not None:
        body["seed"] = request["seed"]  # 0 is one
    logprobs = request.get("logprobs")
    if "messages" in request:
        body["messages"] = request["messages"]
        if logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": logprobs}
        return body
    if request.get("echo") and not isinstance(request["prompt"], str):
        raise ApiError(400, "unsupported_parameter", "echo of tokens is not supported by this engine", param="echo")
    body["prompt"] = request["prompt"]
    if logprobs is not None:
        body["logprobs"] = logprobs
    return body


def events(item: Any) -> Iterator[dict[str, Any]]:
    """The events of what ray.serve.llm yields: a list of texts or errors, or one of them. Raises ApiError for an error.

    Anything else (a whole response to what was asked as a stream) is a TypeError.
    """
    for one in item if isinstance(item, list) else [item]:
        if not isinstance(one, str):
            raise error_of(getattr(one, "error", None) or one)
        for line in one.splitlines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or data in ("", "[DONE]"):
                continue
            event = json.loads(data)
            if "error" in event:
                raise error_of(event["error"])
            yield event


def error_of(error: Any) -> ApiError:
    """What vLLM refused or broke at. Raises TypeError for what is no error of the protocol."""
    told = error if isinstance(error, Mapping) else vars(error) if hasattr(error, "__dict__") else {}
    if "message" not in told:
        raise TypeError(f"ray.serve.llm answered with {type(error).__name__}")
    code = told.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return ApiError(
        status,
        str(told.get("type") or ("invalid_request" if status < 500 else "engine_failed")),
        str(told["message"]),
        param=told.get("param"),
        retry_after=1 if status == 429 else None,
    )


class Pieces:
    """Turns the events of one answer into the router's pieces: `{"start": ...}` first."""

    def __init__(self, echo: str) -> None:
        self._echo = echo
        self._began = False
        self._tokens = 0
        self._prompt_tokens = 0

    def of(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The pieces that an event makes; none for one that says nothing new."""
        usage = event.get("usage") or {}
        self._tokens = int(usage.get("completion_tokens", self._tokens))
        self._prompt_tokens = int(usage.get("prompt_tokens", self._prompt_tokens))
        if not self._began:
            self._began = True
            yield {"start": {"prompt_tokens": self._prompt_tokens, "echo": self._echo}}
        for choice in event.get("choices") or ():
            text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            piece: dict[str, Any] = {"text": text or "", "tokens": self._tokens}
            if choice.get("finish_reason"):
                piece["finish"] = choice["finish_reason"]
            told = _logprobs(choice.get("logprobs"))
            if told:
                piece["logprobs"] = told
            if piece["text"] or "finish" in piece or told:
                yield piece


def _logprobs(told: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Of a chat (`content`) or of a completion (parallel lists)."""
    if not told:
        return []
    if "content" in told:
        return [
            {**_token(one["token"], one["logprob"], one.get("bytes")), "top": [_top(o) for o in one["top_logprobs"]]}
            for one in told["content"] or ()
        ]
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    return [
        {**_token(token, logprob), "top": [_token(*pair) for pair in (top or {}).items()]}
        for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
    ]


def _top(one: Mapping[str, Any]) -> dict[str, Any]:
    return _token(one["token"], one["logprob"], one.get("bytes"))


def _token(token: str, logprob: float, raw: list[int] | None = None) -> dict[str, Any]:
    return {"token": token, "bytes": list(token.encode()) if raw is None else raw, "logprob": logprob}
