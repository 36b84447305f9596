"""A first token is on its way before the next one is computed."""

from __future__ import annotations

import asyncio
import threading
import time

from slipway_serving.engine.generation import Piece
from slipway_serving.engine.streams import AnswerStream, Reader, hand_out, let_go


async def test_the_engine_lets_the_reader_pass_a_piece_on_first() -> None:
    """The engine's thread computes on when the piece has been read and written, in so many rounds of the loop."""
    reader = Reader(asyncio.get_running_loop(), asyncio.Queue())
    stream = AnswerStream(reader, lambda: None)
    order: list[str] = []

    async def pass_on() -> None:
        await anext(stream)
        order.append("read")
        await asyncio.sleep(0)
        order.append("written")

    def engine() -> None:
        hand_out([(reader, Piece("a", 1))])
        let_go({reader.loop}, 10.0)
        order.append("computed")

    reading = asyncio.create_task(pass_on())
    await asyncio.sleep(0)
    await asyncio.gather(asyncio.to_thread(engine), reading)
    assert order == ["read", "written", "computed"]


def test_a_loop_that_is_busy_or_gone_holds_nobody_up() -> None:
    busy, release = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=busy.run_forever)
    thread.start()
    busy.call_soon_threadsafe(release.wait, 10.0)
    gone = asyncio.new_event_loop()
    gone.close()
    began = time.monotonic()
    let_go({busy, gone}, 0.05)
    waited = time.monotonic() - began
    release.set()
    busy.call_soon_threadsafe(busy.stop)
    thread.join(10)
    busy.close()
    assert 0.05 <= waited < 5.0
