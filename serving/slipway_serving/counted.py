"""The pieces of an answer on their way through the router: counted, and checked as far as the client relies on them.

A class and not a generator, because closing a generator that nobody has begun to read does nothing: the row in the
engine would stay until its answer is complete.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from slipway_serving.openai.errors import ApiError
from slipway_serving.statistics import Statistics


class CountedPieces:
    """Raises ApiError where the version fails; how it ended is counted once."""

    def __init__(
        self,
        statistics: Statistics,
        version: str,
        stream: AsyncIterator[dict[str, Any]],
        *,
        started: float,
        prompt_tokens: int,
        first: dict[str, Any] | None = None,
        seen: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """`started` as time.monotonic() says. `first`: a piece that is there already. `seen` is told each piece; it
        must neither wait nor raise.
        """
        self._statistics = statistics
        self._version = version
        self._stream = stream
        self._there = first
        self._started = started
        self._prompt_tokens = prompt_tokens
        self._seen = seen
        self._first: float | None = None
        self._tokens = 0
        self._finished = False
        self._ended = False

    def __aiter__(self) -> CountedPieces:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._ended:
            raise StopAsyncIteration
        try:
            piece, self._there = self._there, None
            if piece is None:
                piece = await anext(self._stream)
            if "error" in piece:
                raise ApiError.of_wire(piece["error"])
            self._count(piece)
        except StopAsyncIteration:
            if self._finished:
                self._end(200)
                raise
            raise await self._failed("its answer broke off") from None
        except ApiError as error:
            self._end(error.status)
            raise
        except Exception as error:  # a replica that died, or that says nonsense
            raise await self._failed(f"{type(error).__name__}: {error}") from error
        if self._seen is not None:
            self._seen(piece)
        return piece

    async def aclose(self) -> None:
        """Nobody reads on: the client hung up, or something else of its request failed."""
        if not self._ended:
            self._end(499)
            await close(self._stream)

    def _count(self, piece: dict[str, Any]) -> None:
        self._tokens = int(piece["tokens"])
        if not isinstance(piece["text"], str):
            raise TypeError("a piece without text")
        self._finished |= "finish" in piece
        if "load" in piece:
            self._statistics.engines.heard(self._version, piece["load"])
        if self._first is None:
            self._first = time.monotonic() - self._started
            self._statistics.first(self._version, self._first, self._prompt_tokens)

    async def _failed(self, words: str) -> ApiError:
        self._end(502)
        await close(self._stream)
        return ApiError(502, "version_failed", f"version {self._version}: {words}")

    def _end(self, status: int) -> None:
        self._ended = True
        seconds = time.monotonic() - self._started
        self._statistics.ended(self._version, status, seconds, self._tokens, self._first)


async def close(stream: AsyncIterator[Any] | None) -> None:
    """Close what can be closed."""
    closing = getattr(stream, "aclose", None)
    if closing is not None:
        await closing()
