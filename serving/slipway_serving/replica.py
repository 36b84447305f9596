"""What an engine's replica does with a request: tokens in, pieces out, refusals in words. No HTTP, no Ray.

Requests arrive as plain dicts that the router has checked; what only the tokenizer knows (how long a prompt is, whether
there is a chat template) is checked here. What comes back first is `{"error": ...}`, so that the router can still ask
another version, or `{"start": ...}` together with the first piece, which so waits for one message and not for two.
After it come pieces.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from slipway_api.serving import EngineConfig
from slipway_serving.capture import SIGNALS
from slipway_serving.engine.engine import Engine, QueueFull, warm_up
from slipway_serving.engine.generation import Generation, Piece, TokenLogprob
from slipway_serving.engine.model import ServedModel
from slipway_serving.engine.streams import AnswerStream, EngineFailed
from slipway_serving.low_priority import at_low_priority
from slipway_serving.openai.errors import ApiError
from slipway_serving.text_tokens import TextTokens

_RETRY_SECONDS = 1


class EngineReplica:
    """A model in this process, behind an engine."""

    def __init__(self, config: EngineConfig, *, gpu: bool, name: str = "") -> None:
        """Loads the model and warms it up; `name` tells replicas of a version apart. Raises UserError, OutOfMemory."""
        self._began = time.monotonic()
        self.config = config
        self.name = name
        model = at_low_priority(functools.partial(ServedModel.load, config, gpu=gpu))
        self.engine = Engine(model, max_batch=config.max_batch, max_queue=config.max_queue)
        warm_up(self.engine)

        self._text_tokens = TextTokens(model.tokenizer)

    @property
    def _tokenizer(self) -> Any:
        return self.engine.model.tokenizer

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """One answer. `request`: prompt (text or tokens) or messages, and the fields of Generation.

        `signals` in it asks for entropy and loss (SIGNALS), which come with the last piece.
        """
        stream: AnswerStream | None = None
        try:
            generation = self._generation(request)
            stream = self.engine.stream(generation)
            first = await anext(stream)
            yield {
                "start": {
                    "prompt_tokens": len(generation.prompt),
                    "echo": self._echo(request, generation),
                    "load": self.load(),
                    "age_seconds": time.monotonic() - self._began,  # tells the router whom it has waited for
                },
                **self._wire(first),
            }
            async for piece in stream:
                yield self._wire(piece)
        except ApiError as error:
            yield {"error": error.to_wire()}
        except QueueFull as error:
            yield {"error": ApiError(429, "queue_full", str(error), retry_after=_RETRY_SECONDS).to_wire()}
        except EngineFailed as error:
            yield {"error": ApiError(500, "engine_failed", str(error)).to_wire()}
        finally:
            if stream is not None:
                await stream.aclose()

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> dict[str, Any]:
        """The embedding of each input, or `{"error": ...}`."""
        try:
            tokens = [self._tokens_of(one) for one in inputs]
            for one in tokens:
                self._check_length(one, 0)
            vectors = [await self.engine.call(functools.partial(ServedModel.embed, tokens=one)) for one in tokens]
        except ApiError as error:
            return {"error": error.to_wire()}
        except EngineFailed as error:
            return {"error": ApiError(500, "engine_failed", str(error)).to_wire()}
        return {"embeddings": vectors, "prompt_tokens": sum(map(len, tokens))}

    def check_health(self) -> None:
        """Raises when the engine has failed: Serve then replaces the replica."""
        if self.engine.failure is not None:
            raise RuntimeError(f"the engine failed: {self.engine.failure}")

    def load(self) -> dict[str, Any]:
        """How busy it is: answers, requests that wait, tokens in the key/value cache and how many it may hold."""
        load = self.engine.load
        return {
            "replica": self.name,
            "running": load.running,
            "waiting": load.waiting,
            "cache_tokens": load.cache_tokens,
            "cache_limit": self.config.max_batch * self.engine.model.max_context,
        }

    # --- requests -------------------------------------------------------------------------------------------------

    def _generation(self, request: dict[str, Any]) -> Generation:
        tokens = self._prompt(request)
        asked, signals = int(request["max_tokens"]), bool(request.get("signals"))
        self._check_length(tokens, 1)
        return Generation(
            prompt=tuple(tokens),
            max_tokens=min(asked, self.engine.model.max_context - len(tokens)),
            temperature=float(request["temperature"]),
            top_p=float(request["top_p"]),
            top_k=int(request.get("top_k", 0)),
            seed=request.get("seed"),
            stop=tuple(request.get("stop", ())),
            presence_penalty=float(request.get("presence_penalty", 0)),
            frequency_penalty=float(request.get("frequency_penalty", 0)),
            logprobs=request.get("logprobs"),
            entropy=signals,
            # Of a chat it would be that of the template as well, which no reference has: it would compare nothing.
            loss=signals and "messages" not in request,
        )

    def _prompt(self, request: dict[str, Any]) -> list[int]:
        if "messages" not in request:
            return self._tokens_of(request["prompt"])
        if not getattr(self._tokenizer, "chat_template", None):
            raise ApiError(
                400,
                "no_chat_template",
                "the model's tokenizer has no chat template: use /v1/completions, or add a template to the model",
                param="messages",
            )
        try:
            return self._text_tokens.chat(request["messages"])
        except Exception as error:  # templates are programs, and some refuse a role
            raise ApiError(400, "chat_template_failed", f"the chat template: {error}", param="messages") from error

    def _tokens_of(self, text: str | Sequence[int]) -> list[int]:
        if not isinstance(text, str):
            tokens, size = [int(token) for token in text], self.engine.model.vocabulary
            wrong = next((token for token in tokens if not 0 <= token < size), None)
            if wrong is not None:
                raise ApiError(
                    400, "invalid_token", f"token {wrong} is not in the vocabulary of {size}", param="prompt"
                )
        else:
            tokens = self._text_tokens.prompt(text)
        if not tokens:
            first = [self._tokenizer.bos_token_id, *sorted(self.engine.model.end_tokens)]
            known = [int(token) for token in first if token is not None]
            if not known:
                raise ApiError(400, "empty_prompt", "the prompt is empty", param="prompt")
            tokens = known[:1]
        return tokens

    def _check_length(self, tokens: Sequence[int], room: int) -> None:
        most = self.engine.model.max_context
        if len(tokens) + room > most:
            raise ApiError(
                400,
                "context_length_exceeded",
                f"the prompt has {len(tokens)} tokens, and the context {most} with the answer: shorten the prompt",
                param="messages",
            )

    def _echo(self, request: dict[str, Any], generation: Generation) -> str:
        if not request.get("echo"):
            return ""
        text: str = self._tokenizer.decode(list(generation.prompt), skip_special_tokens=True)
        return text

    # --- pieces ---------------------------------------------------------------------------------------------------

    def _wire(self, piece: Piece) -> dict[str, Any]:
        wire: dict[str, Any] = {"text": piece.text, "tokens": piece.tokens}
        if piece.finish is not None:
            wire["finish"] = piece.finish
            wire["load"] = self.load()
            wire |= {name: value for name in SIGNALS if (value := getattr(piece, name)) is not None}
        if piece.logprobs:
            wire["logprobs"] = [self._told(one) for one in piece.logprobs]
        return wire

    def _told(self, one: TokenLogprob) -> dict[str, Any]:
        top = [self._token(token) | {"logprob": logprob} for token, logprob in one.top]
        return self._token(one.token) | {"logprob": one.logprob, "top": top}

    def _token(self, token: int) -> dict[str, Any]:
        text = self._tokenizer.decode([token])
        return {"token": text, "bytes": list(text.encode())}
