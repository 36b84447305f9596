"""Lists by pages, selectors, and watches that neither lose nor invent an event."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

ALL_WIDGETS = "/apis/test.example.com/v1/widgets"


def names(reply: Any) -> list[str]:
    """The names in a list, without what kube-controller-manager puts into every namespace."""
    found = [item["metadata"]["name"] for item in reply.body["items"]]
    return [name for name in found if name != "kube-root-ca.crt"]


# --- lists --------------------------------------------------------------------------------------------------------


async def test_pages_show_the_moment_of_the_first(api: Any) -> None:
    for number in range(7):
        await api.make(api.widget(f"w{number}"))
    first = await api.get(api.widgets, limit="3")
    assert names(first) == ["w0", "w1", "w2"]
    assert first.body["metadata"]["remainingItemCount"] == 4
    await api.delete(f"{api.widgets}/w4")
    await api.make(api.widget("w3a"))
    second = await api.get(api.widgets, limit="3", **{"continue": first.body["metadata"]["continue"]})
    assert names(second) == ["w3", "w4", "w5"]
    assert second.body["metadata"]["resourceVersion"] == first.body["metadata"]["resourceVersion"]
    third = await api.get(api.widgets, limit="3", **{"continue": second.body["metadata"]["continue"]})
    assert names(third) == ["w6"]
    assert not third.body["metadata"].get("continue")
    assert names(await api.get(api.widgets)) == ["w0", "w1", "w2", "w3", "w3a", "w5", "w6"]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("team=a", ["one", "two"]),
        ("team==a,tier!=low", ["two"]),
        ("team in (a, b)", ["one", "three", "two"]),
        ("team notin (a)", ["four", "three"]),
        ("team", ["one", "three", "two"]),
        ("!team", ["four"]),
        ("count>5", ["two"]),
        ("count<5,team", ["one"]),
        ("team=", []),
        ("", ["four", "one", "three", "two"]),
    ],
)
async def test_label_selectors(api: Any, selector: str, expected: list[str]) -> None:
    labels = {
        "one": {"team": "a", "tier": "low", "count": "1"},
        "two": {"team": "a", "count": "9"},
        "three": {"team": "b"},
        "four": {"tier": "low"},
    }
    for name, values in labels.items():
        await api.make(api.config_map(name, metadata={"labels": values}))
    assert names(await api.get(api.config_maps, labelSelector=selector)) == expected


@pytest.mark.parametrize("selector", ["a=b=c", "a in b", "(", "a,,b", "a=b,", "in (a)", "a>b", "a/b/c", "-x"])
async def test_broken_label_selectors(api: Any, selector: str) -> None:
    assert (await api.get(api.config_maps, labelSelector=selector)).code == 400


async def test_field_selectors(api: Any) -> None:
    both = f"both-{api.namespace}"  # other tests have widgets in other namespaces
    await api.make(api.widget(both, color="blue"))
    await api.make(api.widget("b"))
    other = await api.make_namespace("other")
    await api.make(api.widget(both), other)
    assert names(await api.get(api.widgets, fieldSelector=f"metadata.name={both}")) == [both]
    assert names(await api.get(api.widgets, fieldSelector=f"metadata.name!={both}")) == ["b"]
    assert len(names(await api.get(ALL_WIDGETS, fieldSelector=f"metadata.name={both}"))) == 2
    assert names(await api.get(ALL_WIDGETS, fieldSelector=f"metadata.namespace={other}")) == [both]
    assert names(await api.get(ALL_WIDGETS, fieldSelector=f"spec.color=blue,metadata.name={both}")) == [both]
    unknown = await api.get(api.widgets, fieldSelector="spec.size=1")
    assert unknown.code == 400
    assert "field label not supported: spec.size" in unknown.message


async def test_events_are_found_by_what_they_are_about(api: Any) -> None:
    path = api.core("events")
    for name, subject in (("e1", "a"), ("e2", "b")):
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name},
            "involvedObject": {"kind": "Widget", "name": subject, "namespace": api.namespace, "uid": f"uid-{subject}"},
            "reason": "Tested",
            "type": "Normal",
        }
        assert (await api.post(path, event)).code == 201
    about = {"name": "a", "kind": "Widget", "uid": "uid-a", "namespace": api.namespace}
    selector = ",".join(f"involvedObject.{field}={value}" for field, value in about.items())
    assert names(await api.get(path, fieldSelector=selector)) == ["e1"]
    assert names(await api.get(path, fieldSelector="type=Warning")) == []


async def test_versions_that_cannot_be(api: Any) -> None:
    current = int((await api.get(api.widgets)).body["metadata"]["resourceVersion"])
    ahead = await api.get(api.widgets, resourceVersion=str(current + 100))
    assert (ahead.code, ahead.body["reason"]) == (504, "Timeout")
    assert "Too large resource version" in ahead.message
    assert (await api.get(api.widgets, resourceVersion="x")).code == 400
    assert (await api.get(api.widgets, limit="-1")).code == 200


# --- watches ------------------------------------------------------------------------------------------------------


async def test_a_watch_goes_on_where_a_list_ended(api: Any) -> None:
    await api.make(api.widget("before"))
    version = (await api.get(api.widgets)).body["metadata"]["resourceVersion"]
    made = await api.make(api.widget("a"))
    async with api.watch(api.widgets, resourceVersion=version) as stream:
        changed = (await api.merge(f"{api.widgets}/a", {"spec": {"size": 2}})).body
        await api.delete(f"{api.widgets}/a")
        events = await stream.until(3)
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert [event["object"] for event in events[:2]] == [made, changed]
    last = events[2]["object"]["metadata"]
    assert int(last["resourceVersion"]) > int(changed["metadata"]["resourceVersion"])
    assert last["uid"] == made["metadata"]["uid"]


async def test_a_watch_without_version_begins_with_what_is_there(api: Any) -> None:
    await api.make(api.widget("a"))
    for version in ({}, {"resourceVersion": "0"}):
        async with api.watch(api.widgets, **version) as stream:
            await stream.until(1 + len(version))
            await api.make(api.widget(f"b{len(version)}"))
            await stream.until(2 + len(version))
            assert stream.said()[0] == ("ADDED", "a")
            assert stream.said()[-1] == ("ADDED", f"b{len(version)}")


async def test_what_starts_or_stops_matching_comes_and_goes(api: Any) -> None:
    path = f"{api.config_maps}/a"
    async with api.watch(api.config_maps, labelSelector="on=yes") as stream:
        await api.make(api.config_map("a"))
        await api.merge(path, {"metadata": {"labels": {"on": "yes"}}})
        await api.merge(path, {"data": {"x": "1"}})
        await api.merge(path, {"metadata": {"labels": {"on": "no"}}})
        await api.delete(path)
        await api.make(api.config_map("b", metadata={"labels": {"on": "yes"}}))
        await stream.until(4)
        assert stream.said() == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "b")]


async def test_a_watch_sees_its_namespace_only(api: Any) -> None:
    other = await api.make_namespace("other")
    versions = await api.get(ALL_WIDGETS)
    since = {"resourceVersion": versions.body["metadata"]["resourceVersion"]}
    async with api.watch(api.widgets) as here, api.watch(ALL_WIDGETS, **since) as everywhere:
        await api.make(api.widget("there"), other)
        await api.make(api.widget("here"))
        await everywhere.until(2)
        await here.until(1)
        assert here.said() == [("ADDED", "here")]


async def test_a_streamed_list_says_where_it_ends(api: Any) -> None:
    await api.make(api.widget("a"))
    params = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    async with api.watch(api.widgets, **params) as stream:
        added, end = await stream.until(2)
        assert added["object"]["metadata"]["name"] == "a"
        assert end["type"] == "BOOKMARK"
        assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    refused = await api.get(api.widgets, watch="true", sendInitialEvents="true")
    assert refused.code == 422


async def test_watchers_agree_under_a_storm(api: Any) -> None:
    """Replaying any watch gives what a list gives, whenever the watch began."""
    version = (await api.get(api.widgets)).body["metadata"]["resourceVersion"]

    async def churn(number: int) -> None:
        path = f"{api.widgets}/w{number}"
        for size in range(1, 6):
            await api.make(api.widget(f"w{number}"))
            await api.merge(path, {"spec": {"size": size}})
            if size < 5 or number % 2:
                await api.delete(path)

    async with api.watch(api.widgets, resourceVersion=version) as early:
        storm = asyncio.gather(*(churn(number) for number in range(8)))
        await asyncio.sleep(0.1)
        async with api.watch(api.widgets) as late:
            await storm
            final = await api.get(api.widgets)
            marker = await api.make(api.widget("marker"))

            def replayed(stream: Any) -> dict[str, Any]:
                objects: dict[str, Any] = {}
                for event in stream.events:
                    metadata = event["object"]["metadata"]
                    if event["type"] == "DELETED":
                        assert metadata["name"] in objects
                        del objects[metadata["name"]]
                    else:
                        assert (event["type"] == "ADDED") == (metadata["name"] not in objects)
                        objects[metadata["name"]] = event["object"]
                return objects

            async def done() -> bool:
                return all(("ADDED", "marker") in stream.said() for stream in (early, late))

            await api.eventually(done)
            expected = {item["metadata"]["name"]: item for item in final.body["items"]} | {"marker": marker}
            assert replayed(early) == replayed(late) == expected
            versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in early.events]
            assert versions == sorted(set(versions))
