"""The way of pieces from the engine's thread to whoever awaits them in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from slipway_serving.engine.generation import Piece


class EngineFailed(Exception):  # noqa: N818 - it is what happened
    """The model failed while it was answering; the replica will be replaced."""


@dataclass(frozen=True)
class Reader:
    """Who waits for an answer: a queue, and the event loop that it belongs to."""

    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[Piece | BaseException]


class AnswerStream:
    """The pieces of one answer; tokens that come while nobody reads are one piece."""

    def __init__(self, reader: Reader, cancel: Callable[[], None]) -> None:
        """`cancel` tells the engine that nobody reads on."""
        self._pieces = reader.pieces
        self._cancel = cancel
        self._ended = False

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> Piece:
        """All that there is, at least one token. Raises EngineFailed when the model fails."""
        if self._ended:
            raise StopAsyncIteration
        found = await self._pieces.get()
        if isinstance(found, BaseException):
            self._ended = True
            raise EngineFailed(f"the model failed: {type(found).__name__}: {found}") from found
        while not self._pieces.empty():
            more = self._pieces.get_nowait()
            if isinstance(more, BaseException):  # said when the next is asked for
                self._pieces.put_nowait(more)
                break
            found += more
        self._ended = found.finish is not None
        return found

    async def aclose(self) -> None:
        """Nobody reads on."""
        if not self._ended:
            self._ended = True
            self._cancel()


def hand_out(made: list[tuple[Reader, Piece | BaseException]]) -> None:
    """One wake-up for each event loop, not for each piece: at many answers a step that is most of what it costs."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Reader, Piece | BaseException]]] = {}
    for reader, piece in made:
        by_loop.setdefault(reader.loop, []).append((reader, piece))
    for loop, pieces in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is gone, and the callers with it
            loop.call_soon_threadsafe(_deliver, pieces)


def _deliver(made: list[tuple[Reader, Piece | BaseException]]) -> None:
    for reader, piece in made:
        reader.pieces.put_nowait(piece)


_ROUNDS = 3  # of an event loop: the reader wakes up, passes the piece on, and the transport writes it


def let_go(loops: set[asyncio.AbstractEventLoop], seconds: float) -> None:
    """Wait until these event loops have dealt with what was handed out to them, but no longer than that."""
    deadline = time.monotonic() + seconds
    for loop in loops:
        dealt = threading.Event()
        with contextlib.suppress(RuntimeError):  # as above
            loop.call_soon_threadsafe(_after, _ROUNDS, loop, dealt)
            dealt.wait(max(0.0, deadline - time.monotonic()))


def _after(rounds: int, loop: asyncio.AbstractEventLoop, dealt: threading.Event) -> None:
    if rounds:
        loop.call_soon(_after, rounds - 1, loop, dealt)
    else:
        dealt.set()
