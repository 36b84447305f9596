"""Leader election: never two, never after the lease, and work that has really stopped."""

from __future__ import annotations

import asyncio
import copy
import datetime
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import AlreadyExists, Conflict, NotFound, NotLeading, Transient
from slipway_operator.kube.lease import LeaderElector
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import LEASES, Json, Resource

from .conftest import serving, until
from .fake_api import FakeApi, close_at_once, reject
from .fake_clock import run

pytestmark = pytest.mark.timed

FREE_FOR_ONE = {"holderIdentity": "one", "leaseDurationSeconds": 1}  # as after a lost answer: "one" may take it at once
SHORT: dict[str, Any] = {"lease_duration": 0.9, "renew_deadline": 0.6, "retry_period": 0.08}


def elector(client: Client, identity: str, **options: Any) -> LeaderElector:
    def abort() -> None:
        raise AssertionError("the process would have been ended")

    return LeaderElector(client, "ns", "slipway", identity, **({"abort": abort} | SHORT | options))


class Worker:
    """Work that notes each moment at which it is alive."""

    def __init__(self) -> None:
        self.last = 0.0
        self.started = 0

    async def lead(self) -> None:
        self.started += 1
        while True:
            self.last = time.monotonic()
            await asyncio.sleep(0.005)


async def stopped(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def test_the_first_takes_a_lease_that_exists_and_renews_it(api: FakeApi, client: Client) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    metrics = Metrics()
    one, worker = elector(client, "one", metrics=metrics), Worker()
    assert not one.is_valid()
    with pytest.raises(NotLeading):
        one.guard()
    task = asyncio.create_task(one.run(worker.lead))
    await until(lambda: worker.started)
    one.guard()
    assert "slipway_leader 1.0" in metrics.render().decode()
    await asyncio.sleep(0.8)  # longer than the renew deadline
    assert one.is_valid()
    lease = api.get(LEASES, "slipway")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "one"
    assert lease["spec"]["leaseDurationSeconds"] == 1
    assert len(api.asked("replace")) >= 5
    datetime.datetime.strptime(lease["spec"]["renewTime"], "%Y-%m-%dT%H:%M:%S.%fZ")
    await stopped(task)


async def test_who_creates_the_lease_waits_until_an_earlier_leader_would_have_stopped(
    api: FakeApi, client: Client
) -> None:
    one, worker = elector(client, "one"), Worker()
    started = time.monotonic()
    task = asyncio.create_task(one.run(worker.lead))
    await until(lambda: api.get(LEASES, "slipway") is not None)
    assert not one.is_valid()
    assert not worker.started
    await until(lambda: worker.started)
    assert time.monotonic() - started >= SHORT["renew_deadline"]
    await stopped(task)


async def test_release_on_exit_lets_the_next_one_start_at_once(api: FakeApi, client: Client) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    one, two = elector(client, "one"), elector(client, "two", lease_duration=30)
    first, second = Worker(), Worker()
    task = asyncio.create_task(one.run(first.lead))
    await until(lambda: first.started)
    waiting = asyncio.create_task(two.run(second.lead))
    await asyncio.sleep(0.1)
    assert second.started == 0
    await stopped(task)
    stopped_at = time.monotonic()
    lease = api.get(LEASES, "slipway")
    assert lease is not None
    assert "holderIdentity" not in lease["spec"]
    assert not one.is_valid()
    await until(lambda: second.started, 2)
    assert first.last <= stopped_at
    lease = api.get(LEASES, "slipway")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "two"
    await stopped(waiting)


async def test_work_that_ends_by_itself_or_fails_releases_the_lease(api: FakeApi, client: Client) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)

    async def ends() -> None: ...

    async def fails() -> None:
        raise ZeroDivisionError

    await elector(client, "one").run(ends)
    lease = api.get(LEASES, "slipway")
    assert lease is not None
    assert "holderIdentity" not in lease["spec"]
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    with pytest.raises(ZeroDivisionError):
        await elector(client, "one").run(fails)
    lease = api.get(LEASES, "slipway")
    assert lease is not None
    assert "holderIdentity" not in lease["spec"]


async def test_with_the_lock_out_of_reach_work_has_stopped_before_the_lease_runs_out() -> None:
    """The guarantee that the official election lacks: its leader was seen working twice as long as its lease."""
    await asyncio.gather(*(_on_a_server_of_its_own(_out_of_reach, how) for how in ("hung", "refused", "500", "cut")))


async def _on_a_server_of_its_own(scenario: Callable[[FakeApi, Client, str], Awaitable[None]], how: str) -> None:
    async with serving() as api, Client(api.config) as client:
        await scenario(api, client, how)


async def _out_of_reach(api: FakeApi, client: Client, how: str) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    one, worker = elector(client, "one"), Worker()
    task = asyncio.create_task(one.run(worker.lead))
    await until(lambda: worker.started)
    await asyncio.sleep(0.2)
    renewals = len(api.asked("replace"))
    last_renewal = api.asked("replace")[-1].at
    match how:
        case "hung":
            api.freeze()
        case "refused":
            await api.stop()
        case "500":
            api.fault("*", reject(500), times=1000)
        case "cut":
            api.fault("*", close_at_once, times=1000)
    with pytest.raises(NotLeading, match="not renewed"):
        await asyncio.wait_for(task, 3)
    assert not one.is_valid()
    assert renewals >= 1
    assert worker.last - last_renewal < SHORT["lease_duration"]
    later = worker.last
    await asyncio.sleep(0.1)
    assert worker.last == later


async def test_work_that_will_not_stop_ends_the_process_before_the_lease_runs_out(api: FakeApi, client: Client) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    aborted: list[float] = []
    one = elector(client, "one", abort=lambda: aborted.append(time.monotonic()))
    running = True

    async def stubborn() -> None:
        while running:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(one.run(stubborn))
    await until(one.is_valid)
    await asyncio.sleep(0.15)
    last = api.asked("replace")[-1].at
    await api.stop()
    with pytest.raises(NotLeading):
        await asyncio.wait_for(task, 3)
    assert len(aborted) == 1
    assert aborted[0] - last <= SHORT["lease_duration"] + 0.1
    running = False


async def test_a_lease_edited_to_another_holder_is_lost_at_once(api: FakeApi, client: Client) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    one, worker = elector(client, "one"), Worker()
    task = asyncio.create_task(one.run(worker.lead))
    await until(lambda: worker.started)
    api.put(LEASES, "slipway", spec={"holderIdentity": "somebody", "leaseDurationSeconds": 1})
    edited = time.monotonic()
    with pytest.raises(NotLeading, match="held by somebody"):
        await task
    assert time.monotonic() - edited < 0.5


async def test_a_lease_that_is_deleted_or_edited_keeps_its_leader() -> None:
    await asyncio.gather(*(_on_a_server_of_its_own(_edited, edit) for edit in ("delete", "empty", "shorten")))


async def _edited(api: FakeApi, client: Client, edit: str) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    one, two = elector(client, "one"), elector(client, "two")
    first, second = Worker(), Worker()
    tasks = [asyncio.create_task(one.run(first.lead))]
    await until(lambda: first.started)
    tasks.append(asyncio.create_task(two.run(second.lead)))
    await asyncio.sleep(0.2)
    for _ in range(2):
        if edit == "delete":
            api.remove(LEASES, "slipway")
        elif edit == "empty":
            api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
        else:
            spec = {"holderIdentity": "one", "leaseDurationSeconds": 1}
            api.put(LEASES, "slipway", spec=spec)
        await asyncio.sleep(0.3)
    assert one.is_valid()
    assert second.started == 0
    lease = api.get(LEASES, "slipway")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "one"
    for task in tasks:
        await stopped(task)


async def test_the_answer_to_a_renewal_may_be_lost(api: FakeApi, client: Client) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    one, worker = elector(client, "one"), Worker()
    task = asyncio.create_task(one.run(worker.lead))
    await until(lambda: worker.started)

    async def applied_but_not_answered(asked: Any) -> Any:
        api.put(LEASES, "slipway", spec=asked.body["spec"])
        return await close_at_once(asked)

    api.fault("replace", applied_but_not_answered, times=2)
    await asyncio.sleep(0.9)
    assert one.is_valid()
    assert not task.done()
    await stopped(task)


async def test_a_step_of_the_wall_clock_changes_nothing(api: FakeApi, client: Client) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    steps = iter([3600.0 * 24 * (-1) ** n for n in range(10_000)])

    def wall() -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=next(steps))

    one, two = elector(client, "one", wall=wall), elector(client, "two", wall=wall)
    first, second = Worker(), Worker()
    tasks = [asyncio.create_task(one.run(first.lead))]
    await until(lambda: first.started)
    tasks.append(asyncio.create_task(two.run(second.lead)))
    await asyncio.sleep(1.2)
    assert one.is_valid()
    assert second.started == 0
    for task in tasks:
        await stopped(task)


async def test_a_process_that_was_stopped_for_long_does_not_write_when_it_goes_on(api: FakeApi, client: Client) -> None:
    """As SIGSTOP and SIGCONT: the clock moves on and nothing of ours runs."""
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)
    skipped = 0.0
    one = elector(client, "one", clock=lambda: time.monotonic() + skipped)
    worker = Worker()
    task = asyncio.create_task(one.run(worker.lead))
    await until(lambda: worker.started)
    async with Client(api.config, guard=one.guard) as guarded:
        await guarded.create(LEASES, {"metadata": {"name": "before", "namespace": "ns"}})
        renewals = len(api.asked("replace"))
        skipped = SHORT["renew_deadline"] + 0.05  # the lease itself is still good: the rest is for what is on its way
        with pytest.raises(NotLeading):
            await guarded.create(LEASES, {"metadata": {"name": "after", "namespace": "ns"}})
        with pytest.raises(NotLeading, match="held up"):
            await task
    assert len(api.asked("replace")) == renewals
    assert api.get(LEASES, "after") is None


async def test_the_lease_goes_around_the_limiter_and_the_guard(api: FakeApi) -> None:
    api.put(LEASES, "slipway", spec=FREE_FOR_ONE)

    def guard() -> None:
        one.guard()

    async with Client(api.config, guard=guard) as client:
        one = elector(client, "one")
        worker = Worker()
        task = asyncio.create_task(one.run(worker.lead))
        await until(lambda: worker.started)
        await stopped(task)


def test_times_in_the_wrong_order_are_refused(api: FakeApi) -> None:
    with pytest.raises(ValueError, match="lease_duration > renew_deadline"):
        LeaderElector(Lock(random.Random()).replica("a"), "ns", "l", "a", lease_duration=10, renew_deadline=10)


# -- many replicas, hours of trouble, on a fake clock ------------------------------------------------------------------


class Lock:
    """A Lease behind a bad network: slow both ways, answers get lost, the object is deleted and edited."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.lease: Json | None = None
        self.version = 0
        self.cut_off: set[str] = set()

    def store(self, obj: Json) -> Json:
        self.version += 1
        self.lease = copy.deepcopy(obj)
        self.lease["metadata"] |= {"resourceVersion": str(self.version), "uid": "u"}
        return copy.deepcopy(self.lease)

    async def call(self, who: str, action: Callable[[], Json]) -> Json:
        await asyncio.sleep(self.rng.choice([0.001, 0.1, 3, 20]))
        if who in self.cut_off and self.rng.random() < 0.5:
            raise Transient(0, "Connection", "refused")
        result = action()
        await asyncio.sleep(self.rng.choice([0.001, 0.1, 3]))
        if who in self.cut_off:
            raise Transient(0, "Connection", "answer lost")
        return result

    def replica(self, who: str) -> Replica:
        return Replica(self, who)


class Replica:
    """One replica's way to the lock."""

    def __init__(self, lock: Lock, who: str) -> None:
        self.lock, self.who = lock, who

    async def get(self, res: Resource, namespace: str | None, name: str) -> Json:
        def action() -> Json:
            if self.lock.lease is None:
                raise NotFound(404, "NotFound", "")
            return copy.deepcopy(self.lock.lease)

        return await self.lock.call(self.who, action)

    async def create(self, res: Resource, obj: Json) -> Json:
        def action() -> Json:
            if self.lock.lease is not None:
                raise AlreadyExists(409, "AlreadyExists", "")
            return self.lock.store(obj)

        return await self.lock.call(self.who, action)

    async def replace(self, res: Resource, obj: Json) -> Json:
        def action() -> Json:
            if self.lock.lease is None:
                raise NotFound(404, "NotFound", "")
            if obj["metadata"]["resourceVersion"] != self.lock.lease["metadata"]["resourceVersion"]:
                raise Conflict(409, "Conflict", "")
            return self.lock.store(obj)

        return await self.lock.call(self.who, action)


async def _hours_of_trouble(seed: int) -> tuple[int, int]:
    rng = random.Random(seed)
    lock = Lock(rng)
    loop = asyncio.get_running_loop()
    electors: dict[str, LeaderElector] = {}
    terms = overlaps = 0

    def check() -> None:
        nonlocal overlaps
        if sum(one.is_valid() for one in electors.values()) > 1:
            overlaps += 1

    async def lead() -> None:
        nonlocal terms
        terms += 1
        while True:
            check()
            await asyncio.sleep(0.5)

    async def replica(who: str) -> None:
        while True:
            api = lock.replica(who)
            electors[who] = LeaderElector(api, "ns", "l", who, clock=loop.time, rng=rng, abort=_never)
            term = asyncio.create_task(electors[who].run(lead))
            await asyncio.wait({term}, timeout=rng.uniform(20, 600))
            await stopped(term)
            await asyncio.sleep(rng.uniform(0, 30))

    tasks = [asyncio.create_task(replica(who)) for who in ("a", "b", "c")]
    for _ in range(60):
        await asyncio.sleep(rng.uniform(1, 60))
        trouble = rng.choice(["cut", "heal", "delete", "empty", "shorten"])
        if trouble == "cut":
            lock.cut_off.add(rng.choice("abc"))
        elif trouble == "heal":
            lock.cut_off.clear()
        elif trouble == "delete":
            lock.lease = None
        elif lock.lease is not None and trouble == "empty":
            lock.store(lock.lease | {"spec": {}})
        elif lock.lease is not None and "holderIdentity" in lock.lease["spec"]:
            # (Without a holder this would be what a leader writes that has let go.)
            lock.store(lock.lease | {"spec": lock.lease["spec"] | {"leaseDurationSeconds": 1}})
    for task in tasks:
        await stopped(task)
    return terms, overlaps


def _never() -> None:
    raise AssertionError("work did not stop in time")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hours of trouble fill hours of log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(max_examples=8)
@given(st.integers(0, 2**32))
def test_two_electors_are_never_both_valid(seed: int) -> None:
    _, overlaps = run(_hours_of_trouble(seed))
    assert overlaps == 0


def test_there_is_a_leader_most_of_the_time() -> None:
    """Or the test above would pass with an elector that never leads."""
    terms = [run(_hours_of_trouble(seed))[0] for seed in range(3)]
    assert min(terms) >= 3


def test_validity_counts_from_before_the_renewal_was_sent() -> None:
    """Others count from when they see it, which may be at once, while its answer takes seconds to come back."""

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        lock = Lock(random.Random(4))
        lock.store({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}})
        sent: list[float] = []

        async def slow_then_dead(_: str, action: Callable[[], Json]) -> Json:
            sent.append(loop.time())
            result = action()
            await asyncio.sleep(4 if len(sent) == 1 else 1e6)
            return result

        lock.call = slow_then_dead  # type: ignore[method-assign, assignment]
        one = LeaderElector(lock.replica("a"), "ns", "l", "a", clock=loop.time)
        one._lease = copy.deepcopy(lock.lease)
        worked_until = 0.0

        async def lead() -> None:
            nonlocal worked_until
            while True:
                worked_until = loop.time()
                await asyncio.sleep(0.1)

        with pytest.raises(NotLeading):
            await one.run(lead)
        return worked_until - sent[0]

    assert 9 < run(scenario()) <= 10


def test_failover_after_a_crash_takes_at_most_20_seconds() -> None:
    async def scenario() -> float:
        rng = random.Random(2)
        lock = Lock(rng)
        lock.call = _instantly  # type: ignore[method-assign, assignment]
        lock.store({"metadata": {"name": "l"}, "spec": {}})
        loop = asyncio.get_running_loop()
        led: dict[str, float] = {}

        def replica(who: str) -> asyncio.Task[None]:
            async def lead() -> None:
                led[who] = loop.time()
                await asyncio.sleep(1e6)

            one = LeaderElector(lock.replica(who), "ns", "l", who, clock=loop.time, rng=rng)
            one._release = _crashed  # type: ignore[method-assign]
            return asyncio.create_task(one.run(lead))

        first = replica("a")
        await asyncio.sleep(30)
        second = replica("b")
        await asyncio.sleep(30)
        await stopped(first)
        crashed_at = loop.time()
        await asyncio.sleep(30)
        await stopped(second)
        return led["b"] - crashed_at

    assert 12 < run(scenario()) <= 20


async def _instantly(_: str, action: Callable[[], Json]) -> Json:
    return action()


async def _crashed() -> None:
    """A process that is killed releases nothing."""
