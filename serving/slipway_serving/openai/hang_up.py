"""Clients that go away: what was begun for them is ended at once, whichever way they notice or we do.

Servers say `http.disconnect` to whoever asks, and go on. Nobody asks while an answer is awaited as a whole. Starlette
does while it streams, with a group of tasks for each answer, where one task will do; and it leaves a stream that it
never began to read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from slipway_serving.openai.errors import ApiError
from slipway_serving.router import Begun


@contextlib.asynccontextmanager
async def cancelled_by_hang_up(receive: Receive) -> AsyncIterator[None]:
    """What happens inside is cancelled when the client goes. Raises ApiError 499 then. The body must have been read."""
    task, gone = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ApiError(499, "client_gone", "the client closed the connection") from None
        raise
    finally:
        watcher.cancel()


class EventStream(StreamingResponse):
    """Server-sent events. However they end, the answers behind them are closed."""

    def __init__(self, events: AsyncIterator[str], begun: Sequence[Begun], headers: dict[str, str]) -> None:
        super().__init__(self._counted(events), media_type="text/event-stream", headers=headers)
        self._events = events
        self._begun = begun
        self._complete = False
        self.ended: Callable[[bool], None] | None = None
        """Called once, with whether all of it was sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As the server calls it."""
        try:
            with contextlib.suppress(ApiError, OSError):  # the client is gone: we were told, or have tried to send
                async with cancelled_by_hang_up(receive):
                    await self.stream_response(send)
        finally:
            closing = getattr(self._events, "aclose", None)
            if closing is not None:
                with contextlib.suppress(RuntimeError):  # it is being closed already
                    await closing()
            await close_all(self._begun)
            if self.ended is not None:
                self.ended(self._complete)

    async def _counted(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        async for event in events:
            yield event
        self._complete = True


async def close_all(begun: Sequence[Begun]) -> None:
    """Nobody reads these answers any more."""
    for one in begun:
        try:
            await one.pieces.aclose()
        except RuntimeError:  # it is being read at this moment, by somebody who is being cancelled too
            await asyncio.sleep(0)
