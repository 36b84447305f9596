"""The queue: no key is lost, none is in flight twice, edits go first, namespaces take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slipway_operator.kube.queue import Priority, QueueShutDown, WorkQueue
from slipway_operator.kube.resource import Key

from .fake_clock import FakeClockLoop, run

pytestmark = pytest.mark.timed

A, B, C = Key("ns", "a"), Key("ns", "b"), Key("ns", "c")


def now() -> float:
    return asyncio.get_running_loop().time()


async def take(queue: WorkQueue, count: int) -> list[Key]:
    keys = []
    for _ in range(count):
        keys.append(await queue.get())
        queue.done(keys[-1])
    return keys


def test_a_key_added_many_times_is_one_key() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        for _ in range(5):
            queue.add(A)
        queue.add_after(A, 1)
        assert await take(queue, 1) == [A]
        assert (len(queue), queue.waiting) == (0, frozenset())

    run(scenario())


def test_a_key_is_never_in_flight_twice() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add(A)
        assert await queue.get() == A
        queue.add(A)
        queue.add(A, Priority.LOW)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 100)
        queue.done(A)
        assert await queue.get() == A
        queue.done(A)
        assert len(queue) == 0

    run(scenario())


def test_a_delayed_key_comes_at_its_time_and_the_earliest_time_wins() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        start = now()
        queue.add_after(A, 30)
        queue.add_after(A, 10)
        queue.add_after(A, 20)
        assert await queue.get() == A
        assert now() - start == pytest.approx(10)
        queue.done(A)
        assert queue.waiting == frozenset()

    run(scenario())


def test_a_timer_that_fires_in_flight_brings_the_key_back_after_done() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add(A)
        await queue.get()
        queue.add_after(A, 1)
        await asyncio.sleep(2)
        assert len(queue) == 0
        queue.done(A)
        assert await queue.get() == A

    run(scenario())


def test_user_edits_go_before_relists_and_promote_a_key() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add(A, Priority.LOW)
        queue.add(B, Priority.LOW)
        queue.add(C)
        queue.add(B)
        queue.add(C, Priority.LOW)
        assert await take(queue, 3) == [C, B, A]

    run(scenario())


def test_what_somebody_waits_for_goes_before_edits() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add(A, Priority.LOW)
        queue.add(B)
        queue.add(C)
        queue.add(C, Priority.URGENT)
        queue.add(C)
        assert await take(queue, 3) == [C, B, A]

    run(scenario())


def test_what_is_urgent_stays_so_until_it_is_done() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add(A, Priority.URGENT)
        queue.add(C, Priority.LOW)
        for key in (A, C):
            assert await queue.get() == key
            queue.add_rate_limited(key)
            queue.done(key)
        queue.add(B)
        await asyncio.sleep(1)
        assert await take(queue, 3) == [A, B, C]  # C is late, and of low priority no more
        assert queue.urgency(A) is Priority.HIGH  # it was done: the next time is another matter

    run(scenario())


def test_a_stream_of_urgent_keys_starves_neither_edits_nor_resyncs() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add(Key("quiet", "resync"), Priority.LOW)
        queue.add(Key("quiet", "edit"))
        came = []
        for turn in range(40):
            queue.add(Key("busy", f"end-{turn}"), Priority.URGENT)
            key = await queue.get()
            queue.done(key)
            came.append(key.name)
        assert came.index("edit") < 4
        assert came.index("resync") < 16

    run(scenario())


def test_a_stream_of_edits_does_not_starve_resyncs() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add(Key("quiet", "resync"), Priority.LOW)
        for turn in range(40):
            queue.add(Key("busy", f"edit-{turn}"))
            key = await queue.get()
            queue.done(key)
            if key.name == "resync":
                return
        raise AssertionError("the low priority key was never taken")

    run(scenario())


def test_namespaces_take_turns() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        for number in range(1000):
            queue.add(Key("big", f"{number}"))
        queue.add(Key("small", "only"))
        queue.add(Key("tiny", "only"))
        first = await take(queue, 4)
        assert [key.namespace for key in first] == ["big", "small", "tiny", "big"]
        assert [key.name for key in first if key.namespace == "big"] == ["0", "1"]

    run(scenario())


def test_backoff_doubles_per_key_from_5_ms_to_1000_s_and_forget_resets_it() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        delays = []
        for _ in range(25):
            start = now()
            queue.add_rate_limited(A)
            assert await queue.get() == A
            delays.append(now() - start)
            queue.done(A)
        assert delays[:4] == pytest.approx([0.005, 0.01, 0.02, 0.04])
        assert delays[-5:] == pytest.approx([1000] * 5)
        assert queue.add_rate_limited(B) == 0.005
        queue.forget(A)
        assert queue.add_rate_limited(A) == 0.005
        assert queue.add_rate_limited(A, at_least=7) == 7

    run(scenario())


def test_shutdown_ends_getters_and_drained_waits_for_workers() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add(A)
        await queue.get()
        getters = [asyncio.create_task(queue.get()) for _ in range(3)]
        drained = asyncio.create_task(queue.drained())
        await asyncio.sleep(0)
        queue.add_after(C, 5)
        queue.shutdown()
        queue.add(B)
        results = await asyncio.gather(*getters, return_exceptions=True)
        assert [type(result) for result in results] == [QueueShutDown] * 3
        assert not drained.done()
        queue.done(A)
        await drained
        with pytest.raises(QueueShutDown):
            await queue.get()

    run(scenario())


def test_a_getter_cancelled_in_the_moment_of_waking_does_not_lose_the_key() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        first = asyncio.create_task(queue.get())
        second = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.add(A)  # wakes the first
        first.cancel()
        assert await asyncio.wait_for(second, 1) == A

    run(scenario())


def test_done_without_get_is_a_bug_that_shows() -> None:
    with pytest.raises(ValueError, match="not in flight"):
        WorkQueue().done(A)


KEYS = st.builds(Key, st.sampled_from(["x", "y"]), st.sampled_from(["1", "2", "3"]))
PRIORITIES = st.sampled_from(list(Priority))


class QueueMachine(RuleBasedStateMachine):
    """Against a model: `owed` maps each key to the time by which it must be ready."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeClockLoop()
        self.queue = WorkQueue("model", base_delay=1.0, max_delay=8.0)
        self.owed: dict[Key, float] = {}
        self.held: set[Key] = set()

    def do(self, action: Callable[[], Any]) -> Any:
        async def inside() -> Any:
            result = action()
            return await result if asyncio.iscoroutine(result) else result

        return self.loop.run_until_complete(inside())

    def owe(self, key: Key, delay: float) -> None:
        self.owed[key] = min(self.owed.get(key, float("inf")), self.loop.now + delay)

    @rule(key=KEYS, priority=PRIORITIES)
    def add(self, key: Key, priority: Priority) -> None:
        self.do(lambda: self.queue.add(key, priority))
        self.owe(key, 0)

    @rule(key=KEYS, priority=PRIORITIES, delay=st.floats(0.1, 20))
    def add_after(self, key: Key, priority: Priority, delay: float) -> None:
        self.do(lambda: self.queue.add_after(key, delay, priority))
        self.owe(key, delay)

    @rule(key=KEYS)
    def add_rate_limited(self, key: Key) -> None:
        delay = self.do(lambda: self.queue.add_rate_limited(key))
        assert delay <= 8
        self.owe(key, delay)

    @rule(key=KEYS)
    def forget(self, key: Key) -> None:
        self.queue.forget(key)

    @rule(seconds=st.floats(0.1, 15))
    def time_passes(self, seconds: float) -> None:
        self.do(lambda: asyncio.sleep(seconds))

    @precondition(lambda self: len(self.queue) > 0)
    @rule()
    def get(self) -> None:
        key = self.do(self.queue.get)
        assert key not in self.held, "in flight twice"
        assert self.owed.pop(key) <= self.loop.now, "before its time"
        self.held.add(key)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        self.held.discard(key)
        self.do(lambda: self.queue.done(key))

    @rule()
    def cancelled_get(self) -> None:
        async def cancel_one() -> None:
            getter = asyncio.create_task(self.queue.get())
            if not len(self.queue):
                await asyncio.sleep(0)
                getter.cancel()
                await asyncio.wait({getter})
            else:
                getter.cancel()  # before it ran at all
                await asyncio.wait({getter})

        self.do(cancel_one)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.queue.in_flight == frozenset(self.held)
        due = {key for key, at in self.owed.items() if at <= self.loop.now - 1e-6 and key not in self.held}
        assert len(self.queue) >= len(due)

    def teardown(self) -> None:
        """Everything that is owed comes in the end, each key once."""

        async def drain() -> set[Key]:
            for key in sorted(self.held):
                self.queue.done(key)
            got: set[Key] = set()
            for _ in range(len(self.owed)):
                key = await asyncio.wait_for(self.queue.get(), 100)
                assert key not in got
                got.add(key)
            assert len(self.queue) == 0
            assert not self.queue.waiting
            return got

        assert self.do(drain) == set(self.owed)
        self.loop.close()


TestQueueAgainstModel = QueueMachine.TestCase
TestQueueAgainstModel.settings = settings(max_examples=40, stateful_step_count=40)
