"""The client: what it sends, what it tries again, and what it never sends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import pytest
from aiohttp import web

from slipway_operator.kube import errors
from slipway_operator.kube.backoff import Backoff
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import ConnectionConfig, StaticAuth
from slipway_operator.kube.limiter import AdaptiveLimiter
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import CONFIGMAPS, NAMESPACES, RAYJOBS, TRAINJOBS

from .fake_api import Asked, FakeApi, close_at_once, delay, drop, reject, status

pytestmark = pytest.mark.timed


def config_map(name: str, **data: str) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "ns"}, "data": data}


async def test_the_verbs_reach_the_world(api: FakeApi, client: Client) -> None:
    created = await client.create(CONFIGMAPS, config_map("a", k="1"))
    with pytest.raises(errors.AlreadyExists):
        await client.create(CONFIGMAPS, config_map("a"))
    await client.replace(CONFIGMAPS, created | {"data": {"k": "2"}})
    with pytest.raises(errors.Conflict):
        await client.replace(CONFIGMAPS, created)
    await client.merge_patch(CONFIGMAPS, "ns", "a", {"data": {"m": "3"}})
    with pytest.raises(errors.Conflict):
        await client.merge_patch(CONFIGMAPS, "ns", "a", {}, resource_version="1")
    assert (await client.get(CONFIGMAPS, "ns", "a"))["data"] == {"k": "2", "m": "3"}
    with pytest.raises(errors.Conflict):
        await client.delete(CONFIGMAPS, "ns", "a", uid="another object's")
    await client.delete(CONFIGMAPS, "ns", "a", uid=created["metadata"]["uid"])
    with pytest.raises(errors.NotFound):
        await client.get(CONFIGMAPS, "ns", "a")


async def test_apply_is_a_server_side_apply(api: FakeApi, client: Client) -> None:
    job = {"metadata": {"name": "j", "namespace": "ns"}, "spec": {"x": 1}}
    await client.apply(RAYJOBS, job, field_manager="slipway")
    await client.apply_status(RAYJOBS, job | {"status": {}}, field_manager="slipway", force=False)
    whole, sub = api.asked("apply")
    assert whole.headers["Content-Type"] == "application/apply-patch+yaml"
    assert whole.query == {"fieldManager": "slipway", "force": "true"}
    assert whole.body is not None
    assert (whole.body["apiVersion"], whole.body["kind"]) == ("ray.io/v1", "RayJob")
    assert sub.path == "/apis/ray.io/v1/namespaces/ns/rayjobs/j/status"
    assert sub.query["force"] == "false"


async def test_delete_names_what_it_means(api: FakeApi, client: Client) -> None:
    api.put(RAYJOBS, "j")
    with pytest.raises(errors.Conflict):
        await client.delete(RAYJOBS, "ns", "j", uid="u", resource_version="7", propagation="Foreground")
    body = api.asked("delete")[0].body
    assert body is not None
    assert body["preconditions"] == {"uid": "u", "resourceVersion": "7"}
    assert body["propagationPolicy"] == "Foreground"


async def test_lists_are_paged_and_items_say_what_they_are(api: FakeApi, client: Client) -> None:
    for number in range(25):
        api.put(RAYJOBS, f"j{number:02}")
    items, version = await client.list(RAYJOBS, "ns", label_selector="a=b", limit=10)
    assert [item["metadata"]["name"] for item in items] == [f"j{number:02}" for number in range(25)]
    assert version == str(api.version)
    assert {(item["apiVersion"], item["kind"]) for item in items} == {("ray.io/v1", "RayJob")}
    assert [asked.query["limit"] for asked in api.asked("list")] == ["10"] * 3
    assert {asked.query["labelSelector"] for asked in api.asked("list")} == {"a=b"}


async def test_a_list_that_expires_in_the_middle_is_fetched_in_one_piece(api: FakeApi, client: Client) -> None:
    for number in range(25):
        api.put(RAYJOBS, f"j{number:02}")

    async def expire(asked: Asked) -> None:
        if "continue" in asked.query:
            api.expire_pages()

    api.fault("list", expire, times=2)
    items, _ = await client.list(RAYJOBS, limit=10)
    assert len(items) == 25
    assert "limit" not in api.asked("list")[-1].query


async def test_metadata_only_is_asked_for(api: FakeApi, client: Client) -> None:
    async for _ in client.list_pages(RAYJOBS, metadata_only=True):
        pass
    assert "as=PartialObjectMetadataList" in api.asked("list")[0].headers["Accept"]


async def test_discovery(api: FakeApi, client: Client) -> None:
    async def resources(asked: Asked) -> web.Response:
        known = asked.path == "/apis/ray.io/v1"
        return web.json_response({"resources": [{"name": "rayjobs"}]}) if known else status(404, "NotFound")

    api.fault("*", resources, times=2)
    assert await client.discover("ray.io/v1") == [{"name": "rayjobs"}]
    with pytest.raises(errors.NotFound):
        await client.discover("ray.io/v2")


@pytest.mark.parametrize("fault", [reject(500), reject(503), close_at_once])
async def test_reads_are_tried_again(api: FakeApi, client: Client, fault: object) -> None:
    api.put(CONFIGMAPS, "a")
    api.fault("get", fault, times=2)  # type: ignore[arg-type]
    assert (await client.get(CONFIGMAPS, "ns", "a"))["metadata"]["name"] == "a"


async def test_tries_are_bounded(api: FakeApi, client: Client) -> None:
    api.fault("get", reject(500), times=100)
    with pytest.raises(errors.Transient):
        await client.get(CONFIGMAPS, "ns", "a")
    assert len(api.asked("get")) == 3


async def test_a_write_whose_answer_is_lost_is_not_sent_again(api: FakeApi, client: Client) -> None:
    async def drop_after_forward(asked: Asked) -> web.StreamResponse:
        assert asked.body is not None
        api.put(CONFIGMAPS, asked.body["metadata"]["name"])
        drop(asked)
        return web.Response()

    await client.list(CONFIGMAPS)  # so that the write goes over a connection that was kept
    for verb in ("create", "replace", "delete"):
        api.fault(verb, drop_after_forward if verb == "create" else close_at_once)
    for write in (
        client.create(CONFIGMAPS, config_map("a")),
        client.replace(CONFIGMAPS, config_map("a")),
        client.delete(CONFIGMAPS, "ns", "a"),
    ):
        with pytest.raises(errors.Transient):
            await write
        await client.list(CONFIGMAPS)
    assert [len(api.asked(verb)) for verb in ("create", "replace", "delete")] == [1, 1, 1]
    assert api.get(CONFIGMAPS, "a") is not None


async def test_a_429_was_not_done_so_a_write_waits_and_is_sent_again(api: FakeApi, client: Client) -> None:
    api.fault("create", reject(429, **{"Retry-After": "0.2"}), times=1)
    started = time.monotonic()
    await client.create(CONFIGMAPS, config_map("a"))
    assert time.monotonic() - started >= 0.2
    assert len(api.asked("create")) == 2


async def test_every_request_has_a_deadline(api: FakeApi) -> None:
    async with Client(api.config, request_timeout=0.2) as client:
        api.freeze()
        started = time.monotonic()
        for call in (client.get(CONFIGMAPS, "ns", "a"), client.create(CONFIGMAPS, config_map("a"))):
            with pytest.raises(errors.Transient, match="no answer in time"):
                await call
        events = client.watch(CONFIGMAPS, None, "1", timeout_seconds=9, inactivity_timeout=9)
        with pytest.raises(errors.Transient):
            await anext(events)
        assert time.monotonic() - started < 1.5


async def test_a_refused_connection_is_transient(api: FakeApi, client: Client) -> None:
    await api.stop()
    with pytest.raises(errors.Transient) as caught:
        await client.get(CONFIGMAPS, "ns", "a")
    assert caught.value.status == 0


async def test_an_answer_that_is_not_json_is_transient(api: FakeApi, client: Client) -> None:
    async def garbage(_: Asked) -> web.Response:
        return web.Response(body=b'{"metadata": {"name": "\xff"')

    api.fault("get", garbage, times=3)
    with pytest.raises(errors.Transient, match="not JSON"):
        await client.get(CONFIGMAPS, "ns", "a")


async def test_a_redirect_is_not_followed_with_our_token(api: FakeApi, client: Client) -> None:
    async def redirect(_: Asked) -> web.Response:
        return web.Response(status=307, headers={"Location": f"http://localhost:{api.port}/api/v1/namespaces"})

    api.fault("get", redirect)
    with pytest.raises(errors.KubeError):
        await client.get(CONFIGMAPS, "ns", "a")
    assert len(api.requests) == 1


async def test_the_guard_stops_writes_and_not_reads(api: FakeApi) -> None:
    def guard() -> None:
        raise errors.NotLeading(0, "NotLeading", "no lease")

    api.put(CONFIGMAPS, "a")
    async with Client(api.config, guard=guard) as client:
        await client.get(CONFIGMAPS, "ns", "a")
        for write in (
            client.create(CONFIGMAPS, config_map("b")),
            client.apply(CONFIGMAPS, config_map("a"), field_manager="m"),
            client.merge_patch(CONFIGMAPS, "ns", "a", {}),
            client.delete(CONFIGMAPS, "ns", "a"),
            client.raw("POST", "/api/v1/namespaces/ns/configmaps", body=config_map("b")),
        ):
            with pytest.raises(errors.NotLeading):
                await write
        await client.unguarded().create(CONFIGMAPS, config_map("lease"))
    assert [asked.verb for asked in api.requests] == ["get", "create"]


async def test_the_guard_is_asked_again_when_the_connection_is_there(api: FakeApi) -> None:
    """A replica that was frozen while it made a connection must not send when it goes on."""
    asked = 0

    def guard() -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise errors.NotLeading(0, "NotLeading", "lost while connecting")

    async with Client(api.config, guard=guard) as client:
        with pytest.raises(errors.NotLeading, match="lost while connecting"):
            await client.create(CONFIGMAPS, config_map("a"))
    assert api.asked("create") == []


async def test_the_guard_is_asked_again_before_a_second_try(api: FakeApi) -> None:
    leading = True

    def guard() -> None:
        if not leading:
            raise errors.NotLeading(0, "NotLeading", "lost while waiting")

    async def throttle(_: Asked) -> web.Response:
        nonlocal leading
        leading = False
        return status(429, "TooManyRequests", **{"Retry-After": "0.05"})

    api.fault("create", throttle)
    async with Client(api.config, guard=guard) as client:
        with pytest.raises(errors.NotLeading):
            await client.create(CONFIGMAPS, config_map("a"))
    assert len(api.asked("create")) == 1


async def test_credentials_are_renewed_once_after_a_401(api: FakeApi) -> None:
    class Rotating(StaticAuth):
        renewals = 0

        async def refresh(self) -> bool:
            self.renewals += 1
            self._headers["Authorization"] = "Bearer new"
            return True

    async def check(asked: Asked) -> web.Response | None:
        return None if asked.headers["Authorization"] == "Bearer new" else status(401, "Unauthorized")

    api.put(CONFIGMAPS, "a")
    api.fault("*", check, times=100)
    auth = Rotating({"Authorization": "Bearer old"})
    async with Client(ConnectionConfig(api.config.server, auth), attempts=1) as client:
        await client.get(CONFIGMAPS, "ns", "a")
        assert (auth.renewals, len(api.requests)) == (1, 2)
        api.faults.clear()
        api.fault("*", reject(401, "Unauthorized"), times=100)
        with pytest.raises(errors.Unauthorized):
            await client.get(CONFIGMAPS, "ns", "a")
        assert (auth.renewals, len(api.requests)) == (2, 4)


async def test_a_warning_of_the_server_is_logged_once(
    api: FakeApi, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async def warn(_: Asked) -> web.Response:
        return web.json_response({}, headers={"Warning": '299 - "unknown field spec.x"'})

    api.fault("get", warn, times=2)
    with caplog.at_level(logging.WARNING):
        await client.get(CONFIGMAPS, "ns", "a")
        await client.get(CONFIGMAPS, "ns", "a")
    assert sum("unknown field" in record.getMessage() for record in caplog.records) == 1


async def test_requests_are_counted_by_verb_and_code(api: FakeApi) -> None:
    metrics = Metrics()
    api.put(CONFIGMAPS, "a")
    async with Client(api.config, metrics=metrics, attempts=1) as client:
        await client.get(CONFIGMAPS, "ns", "a")
        with pytest.raises(errors.NotFound):
            await client.get(CONFIGMAPS, "ns", "b")
        api.fault("delete", close_at_once)
        with pytest.raises(errors.Transient):
            await client.delete(CONFIGMAPS, "ns", "a")
    text = metrics.render().decode()
    for labels in ('code="200",verb="get"', 'code="404",verb="get"', 'code="0",verb="delete"'):
        assert f"slipway_requests_total{{{labels}}} 1.0" in text


async def test_cancelling_a_request_cancels_it(api: FakeApi) -> None:
    async with Client(api.config, limiter=AdaptiveLimiter()) as client:
        api.freeze()
        task = asyncio.create_task(client.get(CONFIGMAPS, "ns", "a"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_watch_asks_for_bookmarks_and_yields_events(api: FakeApi, client: Client) -> None:
    api.bookmark_every = 0.05
    start = str(api.version)
    api.put(TRAINJOBS, "a")
    events = client.watch(TRAINJOBS, "ns", start, timeout_seconds=60, inactivity_timeout=5, field_selector="x=y")
    async with contextlib.aclosing(events):
        assert (await anext(events))["type"] == "ADDED"
        assert (await anext(events))["type"] == "BOOKMARK"
    query = api.asked("watch")[0].query
    assert (query["allowWatchBookmarks"], query["resourceVersion"]) == ("true", start)
    assert (query["timeoutSeconds"], query["fieldSelector"]) == ("60", "x=y")


async def test_a_megabyte_object_arrives_in_one_piece(api: FakeApi, client: Client) -> None:
    start = str(api.version)
    api.put(CONFIGMAPS, "big", data={"k": "v" * 2**20})
    events = client.watch(CONFIGMAPS, None, start, timeout_seconds=60, inactivity_timeout=5)
    async with contextlib.aclosing(events):
        assert len((await anext(events))["object"]["data"]["k"]) == 2**20


async def test_the_limiter_obeys_retry_after_for_everybody(api: FakeApi) -> None:
    limiter = AdaptiveLimiter(initial=8)
    api.put(CONFIGMAPS, "a")
    async with Client(api.config, limiter=limiter, backoff=Backoff(0.01, 0.05)) as client:
        api.fault("get", reject(429, **{"Retry-After": "0.4"}))
        first = asyncio.create_task(client.get(CONFIGMAPS, "ns", "a"))
        await asyncio.sleep(0.1)
        paused_at = time.monotonic()
        await client.get(CONFIGMAPS, "ns", "a")
        assert time.monotonic() - paused_at > 0.25
        await first
        assert limiter.window == 4


async def test_a_slow_answer_is_waited_for(api: FakeApi, client: Client) -> None:
    api.fault("list", delay(0.1))
    assert (await client.list(NAMESPACES))[0] == []
