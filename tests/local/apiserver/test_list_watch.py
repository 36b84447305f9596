"""Lists by pages, selectors, and watches that neither lose nor invent an event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slipway_local.apiserver.server import ApiServer

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
ALL_WIDGETS = "/apis/test.example.com/v1/widgets"


def names(reply: Any) -> list[str]:
    """The names in a list."""
    return [item["metadata"]["name"] for item in reply.body["items"]]


# --- lists --------------------------------------------------------------------------------------------------------


async def test_a_page_token_outlives_no_restart(
    tmp_path: Path, widget_crd: dict[str, Any], connect: Callable[[ApiServer], Any]
) -> None:
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        for number in range(4):
            await api.make(api.widget(f"w{number}"))
        token = (await api.get(api.widgets, limit="2")).body["metadata"]["continue"]
        await api.make(api.widget("w9"))
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        late = await api.get(api.widgets, limit="2", **{"continue": token})
        assert (late.code, late.body["reason"]) == (410, "Expired")
        rest = await api.get(api.widgets, limit="9", **{"continue": late.body["metadata"]["continue"]})
        assert names(rest) == ["w2", "w3", "w9"]
        bad = await api.get(api.widgets, **{"continue": "nonsense!"})
        assert bad.code == 400


async def test_a_list_of_the_past_is_gone(api: Any) -> None:
    current = int((await api.get(api.widgets)).body["metadata"]["resourceVersion"])
    old = await api.get(api.widgets, resourceVersion=str(current - 1), resourceVersionMatch="Exact")
    assert old.code == 410


async def test_events_are_forgotten_after_an_hour(
    tmp_path: Path, widget_crd: dict[str, Any], connect: Callable[[ApiServer], Any]
) -> None:
    now = [1_800_000_000.0]
    path = "/api/v1/namespaces/default/events"
    async with ApiServer(tmp_path, crds=[widget_crd], clock=lambda: now[0]) as server, connect(server) as api:
        for name in ("old", "refreshed"):
            event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}}
            await api.post(path, {**event, "involvedObject": {"namespace": "default", "name": "x"}})
        now[0] += 3000
        await api.merge(f"{path}/refreshed", {"count": 2})
        assert await server.housekeeping.expire_events() == 0
        now[0] += 1000
        assert await server.housekeeping.expire_events() == 1
        assert names(await api.get(path)) == ["refreshed"]


# --- watches ------------------------------------------------------------------------------------------------------


async def test_bookmarks_and_timeouts(
    tmp_path: Path, widget_crd: dict[str, Any], connect: Callable[[ApiServer], Any]
) -> None:
    async with ApiServer(tmp_path, crds=[widget_crd], bookmark_seconds=0.1) as server, connect(server) as api:
        async with api.watch(api.widgets, allowWatchBookmarks="true", timeoutSeconds="1") as stream:
            await api.make(api.config_map("elsewhere"))
            version = (await api.get(api.widgets)).body["metadata"]["resourceVersion"]

            async def bookmarked() -> bool:
                return any(e["object"]["metadata"]["resourceVersion"] == version for e in stream.events)

            await api.eventually(bookmarked)
            assert {event["type"] for event in stream.events} == {"BOOKMARK"}
            assert stream.events[0]["object"]["kind"] == "Widget"

            async def ended() -> bool:
                return bool(stream.ended)

            await api.eventually(ended)
        async with api.watch(api.widgets, timeoutSeconds="1") as quiet:
            await asyncio.sleep(0.3)
            assert quiet.events == []


async def test_a_version_that_is_forgotten_is_gone(
    tmp_path: Path, widget_crd: dict[str, Any], connect: Callable[[ApiServer], Any]
) -> None:
    async with ApiServer(tmp_path, crds=[widget_crd], history_limit=4) as server, connect(server) as api:
        first = await api.make(api.widget("a"))
        for number in range(10):
            await api.merge(f"{api.widgets}/a", {"metadata": {"labels": {"n": str(number)}}})
        version = first["metadata"]["resourceVersion"]
        async with api.watch(api.widgets, resourceVersion=version) as stream:
            (event,) = await stream.until(1)
            assert event["type"] == "ERROR"
            assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        current = (await api.get(api.widgets)).body["metadata"]["resourceVersion"]
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        async with api.watch(api.widgets, resourceVersion=str(int(current) - 1)) as stream:
            (event,) = await stream.until(1)
            assert event["object"]["code"] == 410
        async with api.watch(api.widgets, resourceVersion=current) as stream:
            await api.make(api.widget("b"))
            await stream.until(1)
            assert stream.said() == [("ADDED", "b")]
