"""The reflector under every fault of list and watch: the cache ends equal to the server, which is left in peace."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from slipway_operator.kube.backoff import Backoff
from slipway_operator.kube.client import Client
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.reflector import Reflector, ReflectorConfig
from slipway_operator.kube.resource import RAYJOBS
from slipway_operator.kube.store import Change, Store

from .conftest import FAST, until
from .fake_api import Answer, Asked, FakeApi, close_at_once, delay, line, reject, stream

pytestmark = pytest.mark.timed


class Cache:
    """A running reflector with a record of what it told."""

    def __init__(self, api: FakeApi, client: Client, config: ReflectorConfig = FAST, **options: Any) -> None:
        self.api = api
        self.metrics = Metrics()
        self.store = Store(RAYJOBS)
        self.reflector = Reflector(
            client, self.store, config=config, rng=random.Random(7), metrics=self.metrics, **options
        )
        self.changes: list[tuple[str, str, str, bool]] = []
        self.reflector.add_handler(self.record)

    def record(self, change: Change, live: bool) -> None:
        metadata = change.obj["metadata"]
        self.changes.append((change.type, metadata["name"], metadata["uid"], live))

    def types(self, name: str) -> list[str]:
        return [type_ for type_, changed, _, _ in self.changes if changed == name]

    def equal(self) -> bool:
        """Whether cache and server hold the same objects in the same versions."""
        mine = {key.name: self.store.get(key) for key in [*self.store.keys()]}
        theirs = {name: obj for (plural, _, name), obj in self.api.objects.items() if plural == "rayjobs"}
        return {n: o["metadata"]["resourceVersion"] for n, o in mine.items() if o} == {
            n: o["metadata"]["resourceVersion"] for n, o in theirs.items()
        }

    def relists(self, reason: str) -> float:
        return float(self.metrics.relists.labels("rayjobs.ray.io", reason)._value.get())


@contextlib.asynccontextmanager
async def running(cache: Cache) -> AsyncIterator[Cache]:
    task = asyncio.create_task(cache.reflector.run())
    try:
        yield cache
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_lists_in_pages_then_watches_from_there(api: FakeApi, client: Client) -> None:
    for number in range(25):
        api.put(RAYJOBS, f"j{number}", metadata={"managedFields": [{"manager": "m"}]})
    async with running(Cache(api, client)) as cache:
        assert not cache.reflector.synced.is_set()
        await asyncio.wait_for(cache.reflector.synced.wait(), 2)
        assert cache.equal()
        await until(lambda: api.asked("watch"))
        assert len(api.asked("list")) == 3
        assert api.asked("watch")[0].query["resourceVersion"] == str(api.version)
        assert all("managedFields" not in obj["metadata"] for obj in cache.store.list())
        assert {live for *_, live in cache.changes} == {False}
        api.put(RAYJOBS, "j3")
        api.remove(RAYJOBS, "j4")
        await until(cache.equal)
        assert cache.types("j3") == ["ADDED", "MODIFIED"]
        assert cache.types("j4") == ["ADDED", "DELETED"]
        assert cache.changes[-1][-1] is True


async def test_synced_is_false_until_the_list_is_complete(api: FakeApi, client: Client) -> None:
    for number in range(15):
        api.put(RAYJOBS, f"j{number}")
    api.fault("list", delay(0.2), times=2)
    async with running(Cache(api, client)) as cache:
        await asyncio.sleep(0.3)
        assert not cache.reflector.synced.is_set()
        assert len(cache.store) == 0
        await asyncio.wait_for(cache.reflector.synced.wait(), 2)
        assert len(cache.store) == 15


async def test_a_list_that_expires_between_pages_is_taken_in_one_piece(api: FakeApi, client: Client) -> None:
    for number in range(15):
        api.put(RAYJOBS, f"j{number}")

    async def expire(asked: Asked) -> None:
        if "continue" in asked.query:
            api.expire_pages()

    api.fault("list", expire, times=2)
    async with running(Cache(api, client)) as cache:
        await asyncio.wait_for(cache.reflector.synced.wait(), 2)
        assert cache.equal()


@pytest.mark.parametrize("as_event", [True, False], ids=["ERROR event", "HTTP 410"])
async def test_410_relists_with_a_uid_aware_diff(api: FakeApi, client: Client, as_event: bool) -> None:
    api.gone_as_event = as_event
    api.put(RAYJOBS, "same")
    api.put(RAYJOBS, "replaced")
    api.put(RAYJOBS, "removed")
    async with running(Cache(api, client)) as cache:
        await until(lambda: api.asked("watch"))
        await api.stop()
        first = cache.changes[-1][2]
        api.remove(RAYJOBS, "replaced")
        api.put(RAYJOBS, "replaced")
        api.remove(RAYJOBS, "removed")
        api.put(RAYJOBS, "new")
        api.compact()
        cache.changes.clear()
        await api.start()
        await until(lambda: cache.equal() and cache.relists("expired"))
        assert cache.types("replaced") == ["DELETED", "ADDED"]
        uids = [uid for _, name, uid, _ in cache.changes if name == "replaced"]
        assert uids[0] != uids[1]
        assert cache.types("removed") == ["DELETED"]
        assert cache.types("new") == ["ADDED"]
        assert cache.types("same") == ["SYNC"]
        assert first


async def test_a_server_restart_costs_no_second_list(api: FakeApi, client: Client) -> None:
    api.put(RAYJOBS, "a")
    async with running(Cache(api, client)) as cache:
        await until(lambda: api.asked("watch"))
        await api.stop()
        api.put(RAYJOBS, "b")
        await asyncio.sleep(0.3)
        await api.start()
        await until(cache.equal)
        assert len(api.asked("list")) == 1


async def test_bookmarks_carry_the_version_of_a_quiet_watch(api: FakeApi, client: Client) -> None:
    api.bookmark_every = 0.05
    async with running(Cache(api, client)) as cache:
        await until(lambda: api.asked("watch"))
        for _ in range(5):
            api.version += 1  # other resources change
        await until(lambda: cache.store.resource_version == str(api.version))
        await api.stop()
        api.compact()  # everything before the last bookmark is gone
        await api.start()
        api.put(RAYJOBS, "a")
        await until(cache.equal)
        assert cache.relists("expired") == 0
        assert api.asked("watch")[0].query["allowWatchBookmarks"] == "true"


async def test_a_server_without_bookmarks_works_too(api: FakeApi, client: Client) -> None:
    async with running(Cache(api, client)) as cache:
        await until(lambda: len(api.asked("watch")) >= 2, 4)  # each ended by the inactivity timeout
        api.put(RAYJOBS, "a")
        await until(cache.equal)
        assert len(api.asked("list")) == 1


async def test_a_half_open_connection_is_found_and_health_knows_first(api: FakeApi, client: Client) -> None:
    api.bookmark_every = 0.1
    async with running(Cache(api, client)) as cache:
        await until(lambda: cache.store.resource_version)
        await asyncio.sleep(0.3)
        assert cache.reflector.unhealthy() is None
        api.freeze()
        frozen = time.monotonic()
        await until(lambda: cache.reflector.unhealthy() is not None)
        told = time.monotonic() - frozen
        assert "silent" in str(cache.reflector.unhealthy())
        watches = len(api.asked("watch"))
        await until(lambda: len(api.asked("watch")) > watches)
        found = time.monotonic() - frozen
        assert told < found  # counted from the freeze, up to one bookmark after the last sign of life
        assert FAST.inactivity_timeout - 0.2 < found < 2 * FAST.inactivity_timeout
        assert 'slipway_watch_staleness_seconds{resource="rayjobs.ray.io"}' in cache.metrics.render().decode()
        assert cache.reflector.contact_age() > FAST.silence_limit
        api.put(RAYJOBS, "a")
        api.thaw()
        await until(cache.equal)
        await until(lambda: cache.reflector.unhealthy() is None)


async def test_an_outage_is_unhealthy_only_when_waiting_has_not_helped_for_long(api: FakeApi, client: Client) -> None:
    config = dataclasses.replace(FAST, outage_limit=0.6)
    async with running(Cache(api, client, config)) as cache:
        await until(cache.reflector.synced.is_set)
        await api.stop()
        await asyncio.sleep(0.3)
        assert cache.reflector.unhealthy() is None
        await until(lambda: cache.reflector.unhealthy() is not None)
        assert "no contact" in str(cache.reflector.unhealthy())
        await api.start()
        await until(lambda: cache.reflector.unhealthy() is None)


BROKEN_SERVERS: dict[str, tuple[str, Answer]] = {
    "watch closes at once": ("watch", close_at_once),
    "watch ends at once": ("watch", stream()),
    "watch 500": ("watch", reject(500)),
    "watch 410": ("watch", reject(410, "Expired")),
    "watch 403": ("watch", reject(403, "Forbidden")),
    "watch ERROR 410": ("watch", stream(line("ERROR", {"code": 410, "reason": "Expired"}))),
    "watch ERROR 500": ("watch", stream(line("ERROR", {"code": 500, "reason": "InternalError"}))),
    "watch garbage": ("watch", stream(b'{"type": "ADDED", "object"\n')),
    "watch one event": ("watch", stream(line("BOOKMARK", {"metadata": {"resourceVersion": "9000"}}))),
    "list 403": ("list", reject(403, "Forbidden")),
    "list 404": ("list", reject(404, "NotFound")),
    "list 500": ("list", reject(500)),
    "list closes at once": ("list", close_at_once),
}


async def _requests_of_a_broken_server(verb: str, fault: Answer) -> tuple[int, int]:
    api = FakeApi()
    await api.start()
    api.fault(verb, fault, times=10_000)
    async with Client(api.config, request_timeout=1.0, attempts=1) as client, running(Cache(api, client)):
        await asyncio.sleep(0.8)
    await api.stop()
    return len(api.asked("list")), len(api.asked("watch"))


async def test_a_broken_server_is_not_hammered() -> None:
    """Backoff from 0.04 s to 0.3 s, drawn from the upper half, takes at least 0.02+0.04+0.08+0.15+... s: 9 rounds in
    0.8 s. A watch that makes progress each time starts over, and may come 0.8/0.02 times.
    """
    counts = await asyncio.gather(*(_requests_of_a_broken_server(*broken) for broken in BROKEN_SERVERS.values()))
    for (name, (verb, _)), (lists, watches) in zip(BROKEN_SERVERS.items(), counts, strict=True):
        limit = 40 if name == "watch one event" else 9
        assert lists <= 9, name
        assert watches <= limit, name
        assert (lists if verb == "list" else watches) >= 3, name


async def test_a_server_that_is_down_is_tried_rarely_and_found_soon_when_it_is_back(
    api: FakeApi, client: Client
) -> None:
    async with running(Cache(api, client)) as cache:
        await until(cache.reflector.synced.is_set)
        await api.stop()
        connections = 0

        def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            writer.transport.abort()

        closing = await asyncio.start_server(refuse, "127.0.0.1", api.port)
        await asyncio.sleep(0.8)
        closing.close()
        await closing.wait_closed()
        assert 3 <= connections <= 9
        assert cache.reflector.error is not None
        await api.start()
        back = time.monotonic()
        api.put(RAYJOBS, "a")
        await until(cache.equal)
        assert time.monotonic() - back < 2 * FAST.backoff.cap
        assert cache.reflector.error is None


def test_production_backoff_keeps_to_half_a_request_per_second() -> None:
    """B1.25: 5 minutes of outage, 0.8 s doubling to 30 s."""
    backoff, rng, clock, tries = ReflectorConfig().backoff, random.Random(1), 0.0, 0
    while clock < 300:
        tries += 1
        delay = backoff.delay(tries, rng)
        assert delay <= 30
        clock += delay
    assert (backoff.base, backoff.cap) == (0.8, 30.0)
    assert tries / 300 < 0.1
    assert len({backoff.delay(9, rng) for _ in range(50)}) == 50  # jittered
    assert backoff.delay(10_000, rng) <= 30


def job(version: int, name: str = "x", uid: str = "u") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version)}}


@pytest.mark.parametrize(
    ("chunks", "relists"),
    [
        ((b'{"type":"MODIFIED","object":{"metadata":{"na',), False),  # cut in the middle of a line
        ((b'{"type":"MODIFIED","object":{"metadata":{"name":"\xff\xfe"}}}\n',), True),  # broken UTF-8
        ((b"<html>proxy error</html>\n",), True),
        ((b'{"type":"MODIFIED"}\n',), True),
        ((b'{"type":"MODIFIED","object":[]}\n',), True),
        ((b'{"type":"MODIFIED","object":{"metadata":{"name":"a"}}}\n',), True),  # no version
        ((b'{"type":"SURPRISE","object":{"metadata":{"resourceVersion":"1"}}}\n',), True),
        ((b"[1]\n",), True),
    ],
)
async def test_broken_lines_are_survived_and_relisted_when_unsure(
    api: FakeApi, client: Client, chunks: tuple[bytes, ...], relists: bool
) -> None:
    api.put(RAYJOBS, "a")
    api.fault("watch", stream(*chunks, end="cut"))
    async with running(Cache(api, client)) as cache:
        await until(lambda: len(api.asked("watch")) >= 2)
        api.put(RAYJOBS, "a")
        await until(cache.equal)
        assert (len(api.asked("list")) > 1) == relists
        assert "DELETED" not in cache.types("a")


async def test_an_event_split_over_many_packets_is_one_event(api: FakeApi, client: Client) -> None:
    whole = line("ADDED", job(5000)) + line("BOOKMARK", {"metadata": {"resourceVersion": "6000"}})
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    api.fault("watch", stream(*pieces, end="freeze"))
    async with running(Cache(api, client)) as cache:
        await until(lambda: cache.store.resource_version == "6000")
        assert cache.types("x") == ["ADDED"]


async def test_duplicates_and_old_events_tell_nothing_new(api: FakeApi, client: Client) -> None:
    events = [
        line("ADDED", job(5000)),
        line("ADDED", job(5000)),
        line("MODIFIED", job(5002)),
        line("MODIFIED", job(5001)),
        line("DELETED", job(4999, uid="an earlier object of that name")),
        line("BOOKMARK", {"metadata": {"resourceVersion": "6000"}}),
    ]
    api.fault("watch", stream(*events, end="freeze"))
    async with running(Cache(api, client)) as cache:
        await until(lambda: cache.store.resource_version == "6000")
        assert cache.types("x") == ["ADDED", "MODIFIED"]
        assert next(iter(cache.store.list()))["metadata"]["resourceVersion"] == "5002"


async def test_a_missed_event_is_repaired_by_the_next_full_list(api: FakeApi, client: Client) -> None:
    api.bookmark_every = 0.05
    api.put(RAYJOBS, "changed")
    api.put(RAYJOBS, "removed")
    api.put(RAYJOBS, "same")
    config = dataclasses.replace(FAST, relist_after=0.6)  # long before the watch ends
    async with running(Cache(api, client, config)) as cache:
        await until(lambda: api.asked("watch"))
        await asyncio.sleep(0.05)
        cache.changes.clear()
        api.withhold(3)
        api.put(RAYJOBS, "changed")
        api.remove(RAYJOBS, "removed")
        api.put(RAYJOBS, "added")
        await asyncio.sleep(0.2)
        assert not cache.equal()
        await until(cache.equal)
        assert cache.types("changed") == ["MODIFIED"]
        assert cache.types("removed") == ["DELETED"]
        assert cache.types("added") == ["ADDED"]
        assert cache.types("same") == ["SYNC"]
        assert cache.relists("periodic") == 1


async def test_a_list_from_the_past_removes_nothing(api: FakeApi, client: Client) -> None:
    """Time travel: a second, stale API server answers the relist."""
    api.put(RAYJOBS, "old")
    before = [json.loads(json.dumps(obj)) for obj in api.objects.values()]
    past = str(api.version)
    api.put(RAYJOBS, "young")

    async def replay(_: Asked) -> Any:
        return web.json_response({"metadata": {"resourceVersion": past}, "items": before})

    async with running(Cache(api, client)) as cache:
        await until(lambda: api.asked("watch"))
        api.compact()
        api.version += 1
        api.compact()
        api.fault("list", replay, times=3)
        await api.stop()
        await api.start()
        await until(lambda: len(cache.types("young")) > 1)
        assert len(api.asked("list")) == 5
        assert cache.types("young") == ["ADDED", "SYNC"]
        assert cache.equal()


async def test_a_server_restored_from_a_backup_is_believed_in_the_end(api: FakeApi, client: Client) -> None:
    config = dataclasses.replace(FAST, old_list_limit=3)
    api.put(RAYJOBS, "lost")
    async with running(Cache(api, client, config)) as cache:
        await until(lambda: api.asked("watch"))
        await api.stop()
        api.objects.clear()
        api.history.clear()
        api.version, api.compacted = 50, 60  # its watch cache knows nothing of our version
        api.fault("watch", reject(410, "Expired"))
        await api.start()
        await until(lambda: cache.types("lost")[-1:] == ["DELETED"])


async def test_a_missing_crd_is_reported_and_waited_for(api: FakeApi, client: Client) -> None:
    api.served = set()
    async with running(Cache(api, client, optional=True)) as cache:
        await asyncio.wait_for(cache.reflector.settled.wait(), 1)
        assert cache.reflector.missing
        assert not cache.reflector.synced.is_set()
        assert 'slipway_resource_missing{resource="rayjobs.ray.io"} 1.0' in cache.metrics.render().decode()
        api.served = None
        api.put(RAYJOBS, "a")
        await until(cache.equal)
        assert cache.reflector.synced.is_set()
        assert not cache.reflector.missing


async def test_a_crd_that_is_not_optional_holds_the_start(api: FakeApi, client: Client) -> None:
    api.served = set()
    async with running(Cache(api, client)) as cache:
        await until(lambda: cache.reflector.missing)
        assert not cache.reflector.settled.is_set()


@pytest.mark.parametrize("options", [{}, {"optional": True}])
async def test_what_may_not_be_read_holds_the_start(options: dict[str, bool], api: FakeApi, client: Client) -> None:
    api.fault("list", reject(403, "Forbidden"), times=1000)
    async with running(Cache(api, client, **options)) as cache:
        await until(lambda: len(api.asked("list")) >= 2)
        assert not cache.reflector.settled.is_set()


async def test_what_is_dispensable_may_be_forbidden_and_is_read_once_it_is_allowed(
    api: FakeApi, client: Client
) -> None:
    forbidden = api.fault("list", reject(403, "Forbidden"), times=1000)
    api.put(RAYJOBS, "a")
    async with running(Cache(api, client, dispensable=True)) as cache:
        await asyncio.wait_for(cache.reflector.settled.wait(), 1)
        assert not cache.reflector.synced.is_set()
        forbidden.times = 0
        await until(cache.equal)


async def test_a_deleted_crd_deletes_nothing_from_the_cache(api: FakeApi, client: Client) -> None:
    api.put(RAYJOBS, "a")
    async with running(Cache(api, client)) as cache:
        await until(lambda: api.asked("watch"))
        await api.stop()
        api.served = set()
        await api.start()
        await until(lambda: cache.reflector.missing)
        assert len(cache.store) == 1
        assert "DELETED" not in cache.types("a")


async def test_withdrawn_rights_are_reported_and_recovered_from(api: FakeApi, client: Client) -> None:
    api.fault("list", reject(403, "Forbidden"), times=3)
    async with running(Cache(api, client)) as cache:
        await until(lambda: cache.reflector.error is not None and cache.reflector.error.status == 403)
        await until(cache.reflector.synced.is_set)
        assert cache.reflector.error is None


async def test_retry_after_of_a_watch_is_obeyed(api: FakeApi, client: Client) -> None:
    api.fault("watch", reject(429, **{"Retry-After": "0.4"}))
    async with running(Cache(api, client)):
        await until(lambda: len(api.asked("watch")) == 2)
        first, second = api.asked("watch")
        assert second.at - first.at >= 0.4


async def test_watch_timeouts_are_random_within_their_range(api: FakeApi, client: Client) -> None:
    config = dataclasses.replace(FAST, watch_timeout=(300.0, 600.0))
    api.fault("watch", stream(line("BOOKMARK", {"metadata": {"resourceVersion": "9000"}})), times=8)
    async with running(Cache(api, client, config)):
        await until(lambda: len(api.asked("watch")) >= 8)
    asked = {int(watch.query["timeoutSeconds"]) for watch in api.asked("watch")}
    assert len(asked) >= 5
    assert all(300 <= seconds <= 600 for seconds in asked)


async def test_a_handler_that_fails_stops_neither_the_cache_nor_the_others(api: FakeApi, client: Client) -> None:
    def broken(change: Change, live: bool) -> None:
        raise RuntimeError("a bug")

    cache = Cache(api, client)
    cache.reflector._handlers.insert(0, broken)
    async with running(cache):
        await until(lambda: api.asked("watch"))
        api.put(RAYJOBS, "a")
        await until(lambda: cache.types("a") == ["ADDED"])
        assert cache.metrics.handler_errors.labels("rayjobs.ray.io")._value.get() == 1


async def test_a_flood_of_events_leaves_room_for_others(api: FakeApi, client: Client) -> None:
    events = b"".join(line("MODIFIED", job(5000 + number)) for number in range(20_000))
    api.fault("watch", stream(events, end="freeze"))
    longest = 0.0

    async def heartbeat() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)

    async with running(Cache(api, client)) as cache:
        beat = asyncio.create_task(heartbeat())
        await until(lambda: cache.store.resource_version == "24999", 10)
        beat.cancel()
    assert longest < 0.25


def test_health_cannot_be_configured_to_be_the_last_to_know() -> None:
    with pytest.raises(ValueError, match="silence_limit"):
        ReflectorConfig(silence_limit=80, inactivity_timeout=70)
    with pytest.raises(ValueError, match="not a backoff"):
        Backoff(0, 1)


def test_a_quiet_watch_ends_before_it_is_taken_for_a_frozen_one() -> None:
    config = ReflectorConfig()
    assert config.watch_timeout[1] < config.silence_limit < config.inactivity_timeout < 30
