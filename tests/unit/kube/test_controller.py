"""Outcomes and what follows from them; mapping of events to keys; read-your-writes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from slipway_operator.kube import errors
from slipway_operator.kube.client import Client
from slipway_operator.kube.controller import Controller, Key, indexed, own_key, owner_of
from slipway_operator.kube.expectations import Expectations
from slipway_operator.kube.logs import JsonFormatter
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.outcomes import Done, Outcome, ReconcileTimeout, RequeueAfter, TerminalError
from slipway_operator.kube.queue import Priority, WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import RAYJOBS, SECRETS, TRAINJOBS
from slipway_operator.kube.store import Change, Store

from .conftest import FAST, until
from .fake_api import FakeApi
from .fake_clock import run

pytestmark = pytest.mark.timed

A = Key("ns", "a")
Step = Outcome | BaseException | Callable[[], Awaitable[Outcome]]


class Scripted:
    """A controller whose reconciles follow a script, on a fake clock; records when each began."""

    def __init__(self, *script: Step, timeout: float = 10.0, workers: int = 2) -> None:
        self.script = list(script)
        self.began: list[float] = []
        self.metrics = Metrics()
        self.queue = WorkQueue(metrics=self.metrics)
        self.controller = Controller("test", self.queue, self.reconcile, workers, timeout, metrics=self.metrics)

    async def reconcile(self, key: Key) -> Outcome:
        self.began.append(asyncio.get_running_loop().time())
        step = self.script.pop(0) if self.script else Done()
        if isinstance(step, BaseException):
            raise step
        return step if isinstance(step, (Done, RequeueAfter)) else await step()

    def outcomes(self, name: str) -> float:
        return float(self.metrics.reconciles.labels("test", name)._value.get())

    async def play(self, seconds: float = 1e5) -> list[float]:
        """Adds one key, lets the time pass; the gaps between the starts of reconciles."""
        self.queue.add(A)
        task = asyncio.create_task(self.controller.run())
        await asyncio.sleep(seconds)
        self.queue.shutdown()
        await task
        return [after - before for before, after in zip(self.began, self.began[1:], strict=False)]


async def sleeps(seconds: float) -> Outcome:
    await asyncio.sleep(seconds)
    return Done()


@pytest.mark.parametrize(
    ("script", "gaps", "outcome", "failures"),
    [
        ([Done()], [], "done", 0),
        ([RequeueAfter(60), Done()], [60], "requeue_after", 0),
        ([RequeueAfter(0), Done()], [0], "requeue_after", 0),
        ([TerminalError("bad spec")], [], "terminal", 0),
        ([ValueError("bug")] * 3, [0.005, 0.01, 0.02], "error", 0),
        ([errors.Conflict(409, "Conflict", "")], [0.005], "conflict", 0),
        ([errors.Transient(503, "Down", "")], [0.005], "unavailable", 0),
        ([errors.TooManyRequests(429, "Slow", "", 30)], [30], "unavailable", 0),
        ([errors.Forbidden(403, "Forbidden", "")], [0.005], "error", 0),
        ([TimeoutError("of a library")], [0.005], "error", 0),
        pytest.param([lambda: sleeps(100)], [10.005], "timeout", 0, id="too slow"),  # a function has no stable name
        ([None], [0.005], "error", 0),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, list) else str(value),
)
def test_what_follows_from_each_outcome(script: list[Any], gaps: list[float], outcome: str, failures: int) -> None:
    script = [_nothing if step is None else step for step in script]
    scripted = Scripted(*script)
    assert run(scripted.play()) == pytest.approx(gaps)
    assert (
        scripted.outcomes(outcome) == len([step for step in script if not isinstance(step, Done)]) or outcome == "done"
    )
    assert scripted.queue.failures(A) == failures


async def _nothing() -> Any:
    return None


def test_a_timeout_is_not_a_shutdown_and_a_shutdown_is_not_a_timeout() -> None:
    async def scenario() -> None:
        scripted = Scripted(lambda: sleeps(1e9), timeout=5)
        scripted.queue.add(A)
        task = asyncio.create_task(scripted.controller.run())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scripted.outcomes("timeout") == 0
        assert len(scripted.queue) == 1  # interrupted, so still to be done

    run(scenario())


def test_success_resets_the_backoff() -> None:
    scripted = Scripted(ValueError(), ValueError(), RequeueAfter(1), ValueError())
    assert run(scripted.play()) == pytest.approx([0.005, 0.01, 1, 0.005])


def test_a_key_that_changes_while_it_is_worked_on_is_looked_at_again() -> None:
    async def scenario() -> None:
        scripted = Scripted(lambda: sleeps(5), timeout=60)
        asyncio.get_running_loop().call_later(2, scripted.queue.add, A)
        assert await scripted.play() == pytest.approx([5])

    run(scenario())


def test_a_stop_lets_the_reconcile_in_hand_finish() -> None:
    async def scenario() -> None:
        finished = []

        async def slow() -> Outcome:
            await asyncio.sleep(5)
            finished.append(True)
            return Done()

        scripted = Scripted(slow)
        await scripted.play(seconds=1)
        assert finished == [True]

    run(scenario())


def test_reconciles_that_never_wait_leave_room_for_the_lease() -> None:
    async def scenario() -> int:
        async def instant(_: Key) -> Outcome:
            return Done()

        queue = WorkQueue()
        for number in range(1000):
            queue.add(Key("ns", str(number)))
        task = asyncio.create_task(Controller("c", queue, instant, workers=1).run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        left = len(queue)
        queue.shutdown()
        await task
        return left

    assert run(scenario()) > 900


def test_log_lines_inside_a_reconcile_carry_the_key(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[dict[str, Any]] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    collect = Collect()
    logging.getLogger().addHandler(collect)
    try:
        run(Scripted(ValueError("what went wrong")).play())
    finally:
        logging.getLogger().removeHandler(collect)
    failure = next(entry for entry in lines if entry["level"] == "error")
    assert (failure["controller"], failure["key"]) == ("test", "ns/a")
    assert "what went wrong" in failure["error"]


# -- from events to keys -----------------------------------------------------------------------------------------------


def child(owner: str | None, api_version: str = "slipway.dev/v1alpha1", kind: str = "TrainJob") -> dict[str, Any]:
    owners = [{"apiVersion": api_version, "kind": kind, "name": owner, "controller": True}] if owner else []
    return {"metadata": {"name": "c", "namespace": "ns", "ownerReferences": owners}}


@pytest.mark.parametrize(
    ("obj", "keys"),
    [
        (child("j"), [Key("ns", "j")]),
        (child("j", "slipway.dev/v1"), [Key("ns", "j")]),  # another version of the same kind
        (child("j", "other.dev/v1alpha1"), []),
        (child("j", kind="EvalJob"), []),
        (child(None), []),
    ],
)
def test_a_child_maps_to_its_controller_of_that_kind(obj: dict[str, Any], keys: list[Key]) -> None:
    assert list(owner_of(TRAINJOBS)(obj)) == keys


async def test_events_become_keys_of_the_right_priority(api: FakeApi, client: Client) -> None:
    jobs = Store(TRAINJOBS, {"base": lambda obj: obj.get("base", [])})
    children = Store(RAYJOBS)
    reflectors = [Reflector(client, store, config=FAST) for store in (jobs, children)]
    taken: list[Key] = []

    async def reconcile(key: Key) -> Outcome:
        taken.append(key)
        return Done()

    queue = WorkQueue()
    controller = Controller("c", queue, reconcile, workers=1)
    controller.watches(reflectors[0], own_key, when=lambda change: change.type != "MODIFIED")
    controller.watches(reflectors[0], indexed(jobs, "base"))
    controller.watches(reflectors[1], owner_of(TRAINJOBS))
    api.put(TRAINJOBS, "a")
    api.put(TRAINJOBS, "user-of-a", base=["ns/a"])
    tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors]
    await until(lambda: len(api.asked("watch")) == 2)
    assert [len(lane) for lane in queue._lanes] == [0, 0, 2]  # what a list shows is of low priority
    worker = asyncio.create_task(controller.run())
    await until(lambda: sorted(set(taken)) == [Key("ns", "a"), Key("ns", "user-of-a")])
    taken.clear()
    api.put(RAYJOBS, "a-1", metadata=child("a")["metadata"] | {"name": "a-1"})
    await until(lambda: taken == [Key("ns", "a")])
    taken.clear()
    api.put(RAYJOBS, "a-1", metadata=child("b")["metadata"] | {"name": "a-1"})  # it changes hands
    await until(lambda: sorted(taken) == [Key("ns", "a"), Key("ns", "b")])
    taken.clear()
    api.put(TRAINJOBS, "a")  # filtered for itself, but not for the one that uses it
    await until(lambda: taken == [Key("ns", "user-of-a")])
    for task in (worker, *tasks):
        task.cancel()
    await asyncio.wait([worker, *tasks])


def test_a_change_knows_its_latest_state() -> None:
    assert Change("DELETED", {"a": 1}, None).obj == {"a": 1}
    assert Change("MODIFIED", {"a": 1}, {"a": 2}).obj == {"a": 2}
    assert Priority.HIGH < Priority.LOW
    assert issubclass(ReconcileTimeout, Exception) and not issubclass(ReconcileTimeout, TimeoutError)
    with pytest.raises(ValueError, match="requeue"):
        RequeueAfter(-1)


# -- read your own writes ----------------------------------------------------------------------------------------------


def ray_job(version: str, uid: str = "u", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a-1", "namespace": "ns", "uid": uid, "resourceVersion": version, **metadata}}


def test_a_key_is_held_until_the_cache_shows_the_write() -> None:
    async def scenario() -> None:
        store = Store(RAYJOBS)
        expectations = Expectations("c", store)
        assert expectations.ready(A, store)
        expectations.wrote(A, RAYJOBS, ray_job("10"))
        assert not expectations.ready(A, store)
        assert expectations.hold(A) == pytest.approx(30)
        assert expectations.hold(Key("ns", "other")) == 0
        store.upsert(ray_job("9"))
        assert not expectations.ready(A, store)
        store.upsert(ray_job("10"))
        assert expectations.ready(A, store)
        assert expectations.hold(A) == 0

    run(scenario())


def test_a_later_event_or_bookmark_shows_an_earlier_write() -> None:
    async def scenario() -> None:
        store = Store(RAYJOBS)
        expectations = Expectations("c", store)
        expectations.wrote(A, RAYJOBS, ray_job("10"))
        store.advance("9")
        assert not expectations.ready(A, store)
        store.advance("11")  # so it was deleted again, or is out of sight
        assert expectations.ready(A, store)

    run(scenario())


@pytest.mark.parametrize(
    "gone",
    [
        lambda s: s.remove(ray_job("12")),
        lambda s: s.upsert(ray_job("12", deletionTimestamp="t")),
        lambda s: s.upsert(ray_job("12", uid="its successor")),
    ],
)
def test_a_delete_is_awaited_by_uid(gone: Callable[[Store], Any]) -> None:
    async def scenario() -> None:
        store = Store(RAYJOBS)
        store.upsert(ray_job("10"))
        expectations = Expectations("c", store)
        expectations.deleted(A, RAYJOBS, ray_job("10"))
        assert not expectations.ready(A, store)
        store.upsert(ray_job("11"))
        assert not expectations.ready(A, store)
        gone(store)
        assert expectations.ready(A, store)

    run(scenario())


def test_opaque_versions_are_awaited_by_equality() -> None:
    async def scenario() -> None:
        store = Store(RAYJOBS)
        expectations = Expectations("c", store)
        expectations.wrote(A, RAYJOBS, ray_job("x1"))
        store.upsert(ray_job("x0"))
        assert not expectations.ready(A, store)
        store.upsert(ray_job("x1"))
        assert expectations.ready(A, store)

    run(scenario())


def test_the_hold_has_a_cap_and_can_be_forgotten() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        store = Store(RAYJOBS)
        expectations = Expectations("c", store, cap=20, metrics=metrics)
        expectations.wrote(A, RAYJOBS, ray_job("10"))
        await asyncio.sleep(19)
        assert expectations.hold(A) == pytest.approx(1)
        await asyncio.sleep(1)
        assert expectations.hold(A) == 0
        assert metrics.stale_holds.labels("c", "given_up")._value.get() == 1
        expectations.wrote(A, RAYJOBS, ray_job("10"))
        expectations.forget(A)
        assert expectations.hold(A) == 0
        with pytest.raises(ValueError, match="no cache of secrets"):
            expectations.wrote(A, SECRETS, ray_job("10"))

    run(scenario())


async def test_a_stale_cache_never_leads_to_a_second_child(api: FakeApi, client: Client) -> None:
    """The watch is frozen right after the first write; the controller is woken again and again (B1.2)."""

    async def scenario(held: bool) -> int:
        for key in [*api.objects]:
            del api.objects[key]
        store = Store(RAYJOBS)
        reflector = Reflector(client, store, config=FAST)
        expectations = Expectations("c", store)
        created = 0

        async def reconcile(key: Key) -> Outcome:
            nonlocal created
            if len(store) == 0:  # no deterministic name, so that only the hold prevents a duplicate
                created += 1
                body = {"metadata": {"name": f"a-{created}", "namespace": "ns"}}
                expectations.wrote(key, RAYJOBS, await client.create(RAYJOBS, body))
            return Done()

        queue = WorkQueue()
        controller = Controller("c", queue, reconcile, hold=expectations.hold if held else None)
        watching = asyncio.create_task(reflector.run())
        await until(lambda: api._watchers)
        watchers, api._watchers = api._watchers, []  # events happen, and this watch does not hear of them
        working = asyncio.create_task(controller.run())
        for _ in range(20):
            queue.add(A)
            await asyncio.sleep(0.01)
        api._watchers = watchers
        watching.cancel()
        working.cancel()
        await asyncio.wait([watching, working])
        return created

    assert await scenario(held=False) > 1
    assert await scenario(held=True) == 1


async def test_a_held_key_runs_as_soon_as_the_cache_has_caught_up(api: FakeApi, client: Client) -> None:
    store = Store(RAYJOBS)
    reflector = Reflector(client, store, config=FAST)
    expectations = Expectations("c", store)
    seen: list[int] = []

    async def reconcile(key: Key) -> Outcome:
        seen.append(len(store))
        if len(seen) == 1:
            body = {"metadata": {"name": "a-1", "namespace": "ns"}}
            expectations.wrote(key, RAYJOBS, await client.create(RAYJOBS, body))
            queue.add(key)
        return Done()

    queue = WorkQueue()
    controller = Controller("c", queue, reconcile, hold=expectations.hold)
    controller.watches(reflector, lambda _: [A])
    tasks = [asyncio.create_task(reflector.run()), asyncio.create_task(controller.run())]
    await until(reflector.synced.is_set)
    queue.add(A)
    await until(lambda: len(seen) == 2, 0.4)  # the event brings the key back, sooner than the poll would
    assert seen == [0, 1]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
