"""From pieces to OpenAI's responses: whole objects, or server-sent events. Pure but for the clock that is passed in."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from slipway_serving.openai.errors import ApiError
from slipway_serving.router import Begun

DONE = "data: [DONE]\n\n"


class Answer:
    """What the responses to one request have in common."""

    def __init__(self, *, kind: str, request_id: str, model: str, created: int) -> None:
        """`kind`: "chat.completion" or "text_completion"."""
        self.chat = kind == "chat.completion"
        self._kind = kind
        self._base = {"id": request_id, "created": created, "model": model}

    # --- whole ----------------------------------------------------------------------------------------------------

    async def whole(self, begun: Sequence[Begun]) -> dict[str, Any]:
        """The response once all choices are complete. Raises ApiError."""
        ended = await asyncio.gather(*(_read(one) for one in begun))
        choices = [
            self._choice(index, one.echo, *end) for index, (one, end) in enumerate(zip(begun, ended, strict=True))
        ]
        usage = _usage(begun, [tokens for _, tokens, _, _ in ended])
        return {**self._base, "object": self._kind, "choices": choices, "usage": usage}

    def _choice(
        self, index: int, echo: str, text: str, _tokens: int, finish: str, logprobs: list[dict[str, Any]]
    ) -> dict[str, Any]:
        if self.chat:
            content = {"role": "assistant", "content": text}
            told = {"content": [_chat_logprob(one) for one in logprobs]} if logprobs else None
            return {"index": index, "message": content, "finish_reason": finish, "logprobs": told}
        told = _text_logprobs(logprobs) if logprobs else None
        return {"index": index, "text": echo + text, "finish_reason": finish, "logprobs": told}

    # --- streamed -------------------------------------------------------------------------------------------------

    async def stream(self, begun: Sequence[Begun], *, usage: bool) -> AsyncIterator[str]:
        """Server-sent events, the choices as they come. An error ends the stream with an event that says so."""
        tokens = [0] * len(begun)
        for index, one in enumerate(begun):
            if self.chat:
                yield self._event(index, {"role": "assistant", "content": ""}, None, None)
            elif one.echo:
                yield self._event(index, one.echo, None, None)
        try:
            async with contextlib.aclosing(_alone(begun[0]) if len(begun) == 1 else _merged(begun)) as pieces:
                async for index, piece in pieces:
                    tokens[index] = int(piece["tokens"])
                    finish, told = piece.get("finish"), piece.get("logprobs")
                    if piece["text"] or finish or told:
                        text = piece["text"]
                        yield self._event(index, {"content": text} if self.chat else text, finish, told)
            if usage:
                yield f"data: {json.dumps({**self._chunk(), 'choices': [], 'usage': _usage(begun, tokens)})}\n\n"
        except ApiError as error:
            yield f"data: {json.dumps(error.body())}\n\n"
        yield DONE

    def _chunk(self) -> dict[str, Any]:
        return {**self._base, "object": f"{self._kind}.chunk" if self.chat else self._kind}

    def _event(self, index: int, content: Any, finish: str | None, told: list[dict[str, Any]] | None) -> str:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None}
        choice["delta" if self.chat else "text"] = content
        if told:
            choice["logprobs"] = {"content": [_chat_logprob(o) for o in told]} if self.chat else _text_logprobs(told)
        return f"data: {json.dumps({**self._chunk(), 'choices': [choice]}, ensure_ascii=False)}\n\n"


async def _read(begun: Begun) -> tuple[str, int, str, list[dict[str, Any]]]:
    """(text, tokens, finish, logprobs) of a whole answer."""
    parts: list[str] = []
    told: list[dict[str, Any]] = []
    tokens, finish = 0, "length"
    async for piece in begun.pieces:
        parts.append(piece["text"])
        told += piece.get("logprobs", [])
        tokens, finish = int(piece["tokens"]), piece.get("finish", finish)
    return "".join(parts), tokens, finish, told


async def _alone(begun: Begun) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
    """The pieces of a single choice. Raises ApiError."""
    try:
        async for piece in begun.pieces:
            yield 0, piece
    finally:
        await begun.pieces.aclose()


async def _merged(begun: Sequence[Begun]) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
    """The pieces of all choices as they come, each with its choice. Raises the ApiError of the first that fails."""
    merged: asyncio.Queue[tuple[int, dict[str, Any] | ApiError | None]] = asyncio.Queue()
    readers = [asyncio.create_task(_feed(index, one, merged)) for index, one in enumerate(begun)]
    try:
        left = len(begun)
        while left:
            index, piece = await merged.get()
            if piece is None:
                left -= 1
            elif isinstance(piece, ApiError):
                raise piece
            else:
                yield index, piece
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _feed(index: int, begun: Begun, merged: asyncio.Queue[tuple[int, dict[str, Any] | ApiError | None]]) -> None:
    try:
        async for piece in begun.pieces:
            await merged.put((index, piece))
        await merged.put((index, None))
    except ApiError as error:
        await merged.put((index, error))
    finally:
        await begun.pieces.aclose()


def _usage(begun: Sequence[Begun], tokens: Sequence[int]) -> dict[str, int]:
    prompt, completion = sum(one.prompt_tokens for one in begun), sum(tokens)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chat_logprob(one: dict[str, Any]) -> dict[str, Any]:
    return {**{name: one[name] for name in ("token", "bytes", "logprob")}, "top_logprobs": one["top"]}


def _text_logprobs(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    offsets, at = [], 0
    for one in told:
        offsets.append(at)
        at += len(one["token"])
    return {
        "tokens": [one["token"] for one in told],
        "token_logprobs": [one["logprob"] for one in told],
        "top_logprobs": [{top["token"]: top["logprob"] for top in one["top"]} for one in told],
        "text_offset": offsets,
    }
