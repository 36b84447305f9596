"""What the router keeps of requests and answers, and how it gets to the watcher. No Ray, no storage.

A request never waits and never fails because of this: a finished answer is put into a bounded buffer (microseconds),
and a task sends what is there every second. While the watcher is away the buffer fills; what does not fit is counted as
dropped. Nothing is computed here: tokens and features are the work of the watcher, which has a process of its own.
Texts are cut to MOST_CHARACTERS, and their features are those of the part that is left.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MOST_CHARACTERS = 16_384
MOST_RECORDS = 4_000
MOST_BUFFERED = 32 << 20  # characters
BATCH = 250
SEND_SECONDS = 1.0
_TIMEOUT_SECONDS = 20.0
_PAUSE_SECONDS = 3.0  # after a watcher that did not take a batch

SIGNALS = ("entropy", "loss")
"""What an engine may tell with the last piece: see engine/signals.py. One that cannot (vLLM) leaves them out."""

Piece = Mapping[str, Any]
Send = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""`send(application, batch)`: the watcher's answer. May raise anything: then the batch is sent again."""


class Capture(Collector):
    """The buffer of one router replica; for Prometheus, also what the watcher last answered."""

    def __init__(self, send: Send | None = None) -> None:
        self.send = send
        self.application = ""
        self.captured = 0
        self.dropped = 0
        self.watcher: dict[str, Any] = {}
        self._replica = uuid.uuid4().hex[:12]
        self._buffer: deque[tuple[int, dict[str, Any]]] = deque()  # (characters, record)
        self._characters = 0
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()  # a batch that is on its way is at the front of the buffer until it has arrived

    def watch(self, request: Mapping[str, Any], request_id: str, version: str) -> Callable[[Piece], None] | None:
        """What wants to see each piece of an answer: it is captured when it has ended well. None: nobody does."""
        if not self.application:
            return None
        texts: list[str] = []

        def see(piece: Piece) -> None:
            texts.append(piece["text"])
            if piece.get("finish") is None:
                return
            try:
                self._keep(request, request_id, version, "".join(texts), piece)
            except Exception:  # whatever it is, the answer is the client's
                self.dropped += 1

        return see

    def _keep(self, request: Mapping[str, Any], request_id: str, version: str, text: str, last: Piece) -> None:
        record: dict[str, Any] = {"id": request_id, "version": version, "time": time.time()}
        if "messages" in request:
            record["messages"] = _cut_messages(request["messages"])
            size = sum(len(message["content"]) for message in record["messages"])
        else:
            record["prompt"] = request["prompt"][:MOST_CHARACTERS]
            size = len(record["prompt"])
        record |= {"text": text[:MOST_CHARACTERS], "tokens": int(last["tokens"]), "finish": last["finish"]}
        record |= {name: float(last[name]) for name in SIGNALS if name in last}
        self.captured += 1
        self._put(size + len(record["text"]), record)

    def heard(self, entry: Mapping[str, Any]) -> None:
        """Somebody has said what they think of an answer: as FeedbackLog.add."""
        if self.application:
            self._put(len(entry.get("corrected", "")), {"feedback": dict(entry)})

    def _put(self, size: int, record: dict[str, Any]) -> None:
        if len(self._buffer) >= MOST_RECORDS or self._characters + size > MOST_BUFFERED:
            self.dropped += 1
            return
        self._number += 1
        record["key"] = f"{self._replica}/{self._number}"
        self._buffer.append((size, record))
        self._characters += size
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Send until nothing is left."""
        while self._buffer:
            await asyncio.sleep(SEND_SECONDS if len(self._buffer) < BATCH else 0)
            if not await self.flush():
                await asyncio.sleep(_PAUSE_SECONDS)

    async def flush(self) -> bool:
        """Send one batch; whether the watcher took it. It stays in the buffer until then."""
        async with self._sending:
            return await self._flush()

    async def _flush(self) -> bool:
        if self.send is None or not self.application:
            self._buffer.clear()
            self._characters = 0
            return True
        records = [record for _, record in list(self._buffer)[:BATCH]]
        batch = {"replica": self._replica, "records": records, "dropped": self.dropped}
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                self.watcher = await self.send(self.application, batch)
        except Exception:  # it is starting, gone or stuck: what counts is what the buffer holds
            return False
        for _ in records:
            self._characters -= self._buffer.popleft()[0]
        return True

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield _counter("slipway_captured_requests", "Requests that were captured.", self.captured)
        yield _counter("slipway_capture_dropped", "Records that found the buffer full.", self.dropped)
        if not self.watcher:
            return
        yield _counter("slipway_drift_windows", "Windows of requests judged.", self.watcher["windows"])
        yield _counter("slipway_drift_alarms", "Drift alarms.", self.watcher["alarms"])
        yield _counter("slipway_drift_dropped", "Requests that the watcher could not judge.", self.watcher["dropped"])
        drifted = GaugeMetricFamily("slipway_drift_active", "1: the signal is drifted.", labels=["signal"])
        effect = GaugeMetricFamily("slipway_drift_effect", "Effect over its threshold.", labels=["signal"])
        for signal, (ratio, active) in self.watcher["signals"].items():
            drifted.add_metric([signal], float(active))
            effect.add_metric([signal], float(ratio))
        yield drifted
        yield effect


def _counter(name: str, words: str, value: int) -> Metric:
    family = CounterMetricFamily(name, words)
    family.add_metric([], value)
    return family


def _cut_messages(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The newest messages that fit, the oldest of them cut."""
    kept: list[dict[str, str]] = []
    left = MOST_CHARACTERS
    for message in reversed(messages):
        if left <= 0:
            break
        content = str(message["content"])[-left:]
        left -= len(content)
        kept.append({"role": str(message["role"]), "content": content})
    return kept[::-1]
