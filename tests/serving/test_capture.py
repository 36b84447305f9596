"""The router's buffer: what is kept of an answer, that nothing waits for it, and what is counted as dropped."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from slipway_serving import capture as module
from slipway_serving.capture import Capture
from slipway_serving.counted import CountedPieces
from slipway_serving.openai.errors import ApiError
from slipway_serving.statistics import Statistics

ANSWER = {"windows": 3, "alarms": 1, "dropped": 0, "signals": {"input.tokens": (1.5, True)}}


class Watcher:
    """Takes batches, or not."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.away = False

    async def send(self, application: str, batch: dict[str, Any]) -> dict[str, Any]:
        assert application == "watcher"
        if self.away:
            raise ConnectionError("no replica")
        self.batches.append(batch)
        return ANSWER

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for batch in self.batches for record in batch["records"]]


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def capture(watcher: Watcher) -> Capture:
    made = Capture(watcher.send)
    made.application = "watcher"
    return made


async def pieces(*texts: str, finish: str | None = "stop") -> AsyncIterator[dict[str, Any]]:
    for number, text in enumerate(texts):
        ends = {"finish": finish} if finish and number == len(texts) - 1 else {}
        yield {"text": text, "tokens": number + 1, **ends}


async def answer(capture: Capture, number: int, request: dict[str, Any] | None = None, **how: Any) -> list[Any]:
    """An answer as the router passes it on; one that breaks off is an error there."""
    seen = capture.watch(request or {"prompt": f"prompt {number}"}, f"id-{number}", "v-1")
    stream = pieces("Hel", "lo", **how)
    passed: list[Any] = []
    with contextlib.suppress(ApiError):
        counted = CountedPieces(Statistics(), "v-1", stream, started=time.monotonic(), prompt_tokens=3, seen=seen)
        async for piece in counted:
            passed.append(piece)  # noqa: PERF401 - what came before it broke off is kept
    return passed


async def test_an_answer_passes_unchanged_and_is_kept_once_it_has_ended(capture: Capture, watcher: Watcher) -> None:
    assert [piece["text"] for piece in await answer(capture, 1)] == ["Hel", "lo"]
    await answer(capture, 2, finish=None)  # it never ended
    await answer(capture, 3, {"messages": [{"role": "user", "content": "hi", "name": "x"}]})
    capture.heard({"request_id": "id-1", "corrected": "Hi"})
    assert await capture.flush()
    first, chat, feedback = watcher.records
    assert {name: first[name] for name in ("id", "version", "prompt", "text", "tokens", "finish")} == {
        "id": "id-1",
        "version": "v-1",
        "prompt": "prompt 1",
        "text": "Hello",
        "tokens": 2,
        "finish": "stop",
    }
    assert chat["messages"] == [{"role": "user", "content": "hi"}]
    assert feedback["feedback"]["corrected"] == "Hi"
    assert len({record["key"] for record in watcher.records}) == 3


async def test_what_the_engine_tells_with_the_last_piece_is_kept(capture: Capture, watcher: Watcher) -> None:
    for number, told in enumerate(({"entropy": 1.5, "loss": 2.5}, {"entropy": 0.5}, {})):
        see = capture.watch({"prompt": "hi"}, f"id-{number}", "v-1")
        assert see is not None
        see({"text": "Hel", "tokens": 1, "entropy": 9.0})  # of the answer so far: it is not over
        see({"text": "lo", "tokens": 2, "finish": "stop", **told})
    assert await capture.flush()
    assert [(record.get("entropy"), record.get("loss")) for record in watcher.records] == [
        (1.5, 2.5),
        (0.5, None),
        (None, None),
    ]


async def test_nothing_is_kept_while_nobody_watches(watcher: Watcher) -> None:
    capture = Capture(watcher.send)
    await answer(capture, 1)
    capture.heard({"request_id": "id-1"})
    assert (capture.captured, await capture.flush(), watcher.batches) == (0, True, [])


async def test_a_watcher_that_is_away_costs_nothing_but_what_does_not_fit(
    capture: Capture, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_RECORDS", 10)
    watcher.away = True
    for number in range(15):
        assert len(await answer(capture, number)) == 2
    assert not await capture.flush()
    watcher.away = False
    assert await capture.flush()
    assert [record["id"] for record in watcher.records] == [f"id-{number}" for number in range(10)]
    assert watcher.batches[0]["dropped"] == 5
    await answer(capture, 20)
    assert await capture.flush()
    assert watcher.records[-1]["id"] == "id-20"


async def test_what_is_sent_by_itself(capture: Capture, watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    watcher.away = True
    await answer(capture, 1)
    await asyncio.sleep(0.1)
    watcher.away = False
    async with asyncio.timeout(10):
        while not watcher.batches:  # noqa: ASYNC110 - a task of its own sends
            await asyncio.sleep(0.01)
    assert len(watcher.records) == 1


async def test_large_texts_are_cut_and_the_buffer_has_a_size(
    capture: Capture, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BUFFERED", 100_000)
    for number in range(10):
        await answer(capture, number, {"prompt": "x" * 1_000_000})
    assert capture.dropped == 4
    await capture.flush()
    assert {len(record["prompt"]) for record in watcher.records} == {module.MOST_CHARACTERS}
    long = [{"role": "user", "content": letter * 10_000} for letter in "abc"]
    await answer(capture, 99, {"messages": long})
    await capture.flush()
    assert [len(m["content"]) for m in watcher.records[-1]["messages"]] == [6384, 10_000]


@pytest.mark.timed
async def test_a_request_pays_less_than_a_fifth_of_a_millisecond(capture: Capture) -> None:
    request, texts = {"prompt": "word " * 400}, ["word "] * 32

    async def run(watched: bool) -> float:
        started = time.process_time()
        for number in range(1000):
            seen = capture.watch(request, f"id-{number}", "v-1") if watched else None
            async for piece in pieces(*texts):
                if seen is not None:
                    seen(piece)
        return time.process_time() - started

    await run(True)
    with_it, without = await run(True), await run(False)
    assert (with_it - without) / 1000 < 0.0002


async def test_metrics(capture: Capture) -> None:
    registry = CollectorRegistry()
    registry.register(capture)
    await answer(capture, 1)
    await capture.flush()
    told = generate_latest(registry).decode()
    assert "slipway_captured_requests_total 1.0" in told
    assert "slipway_drift_windows_total 3.0" in told
    assert 'slipway_drift_active{signal="input.tokens"} 1.0' in told
    assert 'slipway_drift_effect{signal="input.tokens"} 1.5' in told
