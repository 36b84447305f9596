"""The HTTP endpoint: routes, limits, errors. Everything else is the router's.

Bodies are read here, not by the framework, so that what is too large is refused before it is held, and what is wrong is
answered in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from slipway_serving.openai import access_log
from slipway_serving.openai.answers import Answer
from slipway_serving.openai.errors import ApiError, of_validation
from slipway_serving.openai.hang_up import EventStream, cancelled_by_hang_up, close_all
from slipway_serving.openai.schema import ChatCompletion, Completion, Embeddings, Feedback
from slipway_serving.router import Begun, Router, new_request_id

log = logging.getLogger("slipway.http")
M = TypeVar("M", bound=BaseModel)
_MAX_PROMPTS = 64
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


def build(router: Callable[[], Router]) -> Starlette:
    """The application. `router()` gives the router of this process: Serve makes it after the application.

    Starlette and not FastAPI: of what FastAPI adds, nothing is used here, and each request would pass through it.
    """
    return Starlette(routes=_Endpoint(router).routes())


class _Endpoint:
    def __init__(self, router: Callable[[], Router]) -> None:
        self._router = router
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        """Every route."""
        guarded = [
            Route(path, self._guarded(handler), methods=methods)
            for path, methods, handler in (
                ("/v1/chat/completions", ["POST"], self._chat),
                ("/v1/completions", ["POST"], self._completions),
                ("/v1/models", ["GET"], self._models),
                ("/v1/models/{name}", ["GET"], self._model),
                ("/v1/embeddings", ["POST"], self._embeddings),
                ("/v1/feedback", ["POST"], self._feedback),
                ("/{path:path}", _METHODS, self._nowhere),
            )
        ]
        # They are tried in this order: what is asked for most comes first, what takes every path last.
        *named, nowhere = guarded
        return [*named, Route("/healthz", self._healthz), Route("/metrics", self._metrics), nowhere]

    # --- what all have in common ----------------------------------------------------------------------------------

    def _guarded(
        self, handler: Callable[[Request, str], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Keys, limits, errors, the access log, and the request's id in the answer."""

        async def guarded(request: Request) -> Response:
            router, request_id = self._router(), _id_of(request)
            entry = access_log.Entry(request_id, request.method, request.url.path)
            try:
                client = router.keys.check(request.headers.get("authorization", ""))
                entry.came_from(client)
                router.rates.take(client, router.settings.requests_per_minute)
                answer = await handler(request, request_id)
            except ApiError as error:
                answer = _refusal(error)
            except Exception as error:
                log.exception("request %s", request_id)
                answer = _refusal(ApiError(500, "internal_error", f"{type(error).__name__}; see the log of the router"))
            answer.headers["x-request-id"] = request_id
            entry.answered(answer)
            return answer

        return guarded

    async def _read(self, request: Request, model: type[M]) -> M:
        """The body as a request. Raises ApiError 413, 400."""
        most = self._router().settings.max_body_bytes
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > most:
            raise ApiError(413, "request_too_large", f"the request has {told} bytes, at most {most} are taken")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise ApiError(413, "request_too_large", f"the request has more than {most} bytes")
        try:
            return model.model_validate(_parsed(body.decode("utf-8")))
        except UnicodeError as error:  # of the bytes, or of an escape that is half a character
            raise ApiError(400, "invalid_encoding", f"the body is not UTF-8: {error}") from error
        except ValidationError as error:
            raise of_validation(error) from error
        except (ValueError, RecursionError) as error:
            raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error

    def _check_model(self, asked: str) -> None:
        name = self._router().config.name
        if asked and asked != name:
            raise ApiError(
                404, "model_not_found", f"the model {asked!r} is not served here: {name!r} is", param="model"
            )

    # --- generation -----------------------------------------------------------------------------------------------

    async def _completions(self, request: Request, request_id: str) -> Response:
        asked = await self._read(request, Completion)
        prompts = _prompts(asked.prompt)
        most = self._tokens(asked.max_tokens, "max_tokens")
        common = self._common(asked, most) | {"logprobs": asked.logprobs, "echo": asked.echo}
        wanted = [{**common, "prompt": prompt} for prompt in prompts]
        return await self._answer(request, request_id, asked, wanted, "text_completion")

    async def _chat(self, request: Request, request_id: str) -> Response:
        asked = await self._read(request, ChatCompletion)
        if asked.top_logprobs is not None and not asked.logprobs:
            raise ApiError(400, "invalid_parameter", "top_logprobs needs logprobs: true", param="top_logprobs")
        most = self._tokens(asked.max_completion_tokens or asked.max_tokens, "max_tokens")
        messages = [message.model_dump(exclude_none=True) for message in asked.messages]
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        wanted = [self._common(asked, most) | {"messages": messages, "logprobs": logprobs}]
        return await self._answer(request, request_id, asked, wanted, "chat.completion")

    def _common(self, asked: Any, max_tokens: int) -> dict[str, Any]:
        settings = self._router().settings
        return {
            "max_tokens": max_tokens,
            "temperature": settings.default_temperature if asked.temperature is None else asked.temperature,
            "top_p": settings.default_top_p if asked.top_p is None else asked.top_p,
            "top_k": asked.top_k,
            "seed": asked.seed,
            "stop": asked.stop,
            "presence_penalty": asked.presence_penalty,
            "frequency_penalty": asked.frequency_penalty,
        }

    def _tokens(self, asked: int | None, param: str) -> int:
        settings = self._router().settings
        if asked is not None and asked > settings.max_tokens_limit:
            message = f"{param} is {asked}, at most {settings.max_tokens_limit} may be asked for"
            raise ApiError(400, "max_tokens_too_large", message, param=param)
        return asked or settings.default_max_tokens

    async def _answer(
        self, request: Request, request_id: str, asked: Any, wanted: list[dict[str, Any]], kind: str
    ) -> Response:
        self._check_model(asked.model)
        router = self._router()
        choices = [
            {**one, "seed": one["seed"] + number if one["seed"] is not None else None}
            for one in wanted
            for number in range(asked.n)
        ]
        answer = Answer(kind=kind, request_id=request_id, model=router.config.name, created=int(time.time()))
        begun: list[Begun] = []
        try:
            async with cancelled_by_hang_up(request.receive):
                for one in choices:  # one after the other: they begin within milliseconds, and a refusal ends it
                    begun.append(await router.begin(one, request_id))  # noqa: PERF401 - what has begun must be known
                headers = {"x-slipway-version": begun[0].version}
                if not asked.stream:
                    return JSONResponse(await answer.whole(begun), headers=headers)
        except BaseException:
            await close_all(begun)
            raise
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return EventStream(answer.stream(begun, usage=usage), begun, headers)

    # --- the rest -------------------------------------------------------------------------------------------------

    async def _embeddings(self, request: Request, request_id: str) -> Response:
        asked = await self._read(request, Embeddings)
        self._check_model(asked.model)
        inputs = _prompts(asked.input)
        router = self._router()
        version = router.candidates(request_id)[0]
        try:
            async with asyncio.timeout(router.settings.start_timeout_seconds):
                found = await router.find(version).embed(inputs)
        except TimeoutError:
            raise router.not_started(version.name) from None
        except Exception as error:
            raise ApiError(502, "version_failed", f"version {version.name}: {type(error).__name__}: {error}") from error
        if "error" in found:
            raise ApiError.of_wire(found["error"])
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, asked.encoding_format)}
            for index, vector in enumerate(found["embeddings"])
        ]
        usage = {"prompt_tokens": found["prompt_tokens"], "total_tokens": found["prompt_tokens"]}
        return JSONResponse({"object": "list", "data": data, "model": router.config.name, "usage": usage})

    async def _feedback(self, request: Request, request_id: str) -> Response:
        asked = await self._read(request, Feedback)
        if asked.rating is None and asked.label is None and asked.corrected is None:
            raise ApiError(400, "invalid_parameter", "give a rating, a label or a corrected answer")
        router = self._router()
        version = router.feedback.version_of(asked.request_id)
        verdict = asked.rating is not None or asked.corrected is not None  # a label alone is none
        if verdict and router.feedback.first_verdict(asked.request_id):
            router.statistics.judged(version, bad=asked.rating is None or asked.rating <= 0)
        entry = {**asked.model_dump(exclude_none=True), "version": version, "time": int(1000 * time.time())}
        router.feedback.add(entry)
        router.capture.heard(entry)
        return JSONResponse({"object": "feedback", "request_id": asked.request_id, "version": version})

    async def _models(self, _request: Request, _id: str) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request, _id: str) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        router = self._router()
        versions = {one.name: {"weight": one.weight, "model": one.model} for one in router.settings.versions}
        return {
            "id": router.config.name,
            "object": "model",
            "created": self._created,
            "owned_by": router.config.namespace,
            "versions": versions,
        }

    async def _healthz(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _metrics(self, _request: Request) -> Response:
        statistics = self._router().statistics
        statistics.engines.forget_silent()
        return Response(generate_latest(statistics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _nowhere(self, request: Request, _id: str) -> Response:
        raise ApiError(404, "unknown_url", f"there is no {request.method} {request.url.path} here")


def _id_of(request: Request) -> str:
    """The client's own id, if it is one that can stand in a header and a log; else a new one."""
    given = request.headers.get("x-request-id", "")
    good = 0 < len(given) <= 128 and given.isascii() and given.isprintable() and " " not in given
    return given if good else new_request_id()


def _parsed(text: str) -> Any:
    """JSON. Raises ValueError, RecursionError; UnicodeError for half of a surrogate pair, which no text can hold."""
    value = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refusal(error: ApiError) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def _prompts(given: Any) -> list[Any]:
    """One or many, as text or tokens. Raises ApiError."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    if not given or len(given) > _MAX_PROMPTS:
        raise ApiError(400, "invalid_parameter", f"give 1 to {_MAX_PROMPTS} prompts", param="prompt")
    return list(given)


def _encoded(vector: list[float], how: str) -> list[float] | str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if how == "base64" else vector
