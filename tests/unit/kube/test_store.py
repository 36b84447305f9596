"""The store: UID-aware, ordered by version, indexed, projected."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_operator.kube.resource import RAYJOBS, Json, Key
from slipway_operator.kube.store import Store, keep

ALL = {"label": lambda obj: [obj.get("label", "none")]}


def obj(name: str, version: int, uid: str = "u", **content: Any) -> Json:
    return {"metadata": {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version)}, **content}


def kinds(changes: list[Any]) -> list[str]:
    return [change.type for change in changes]


def test_a_list_is_the_truth_and_says_what_changed() -> None:
    store = Store(RAYJOBS)
    assert kinds(store.replace([obj("a", 1), obj("b", 2), obj("c", 3)], "3")) == ["ADDED"] * 3
    changes = store.replace([obj("a", 1), obj("b", 9), obj("d", 8)], "10")
    assert sorted((c.type, c.obj["metadata"]["name"]) for c in changes) == [
        ("ADDED", "d"),
        ("DELETED", "c"),
        ("MODIFIED", "b"),
        ("SYNC", "a"),
    ]
    assert store.resource_version == "10"
    assert {key.name for key in [*store.keys()]} == {"a", "b", "d"}


def test_delete_and_create_in_a_gap_is_deleted_then_added() -> None:
    store = Store(RAYJOBS)
    store.replace([obj("a", 1, uid="first")], "1")
    changes = store.replace([obj("a", 5, uid="second")], "5")
    assert [(c.type, c.obj["metadata"]["uid"]) for c in changes] == [("DELETED", "first"), ("ADDED", "second")]
    changes = store.upsert(obj("a", 7, uid="third"))
    assert [(c.type, c.obj["metadata"]["uid"]) for c in changes] == [("DELETED", "second"), ("ADDED", "third")]


def test_repeated_and_older_events_change_nothing() -> None:
    store = Store(RAYJOBS)
    store.upsert(obj("a", 5))
    assert store.upsert(obj("a", 5)) == []
    assert store.upsert(obj("a", 4)) == []
    assert store.remove(obj("a", 3, uid="an earlier object of that name")) == []
    assert store.resource_version == "5"
    assert kinds(store.remove(obj("a", 6))) == ["DELETED"]
    assert store.remove(obj("a", 6)) == []
    assert store.resource_version == "6"


def test_versions_that_are_not_numbers_still_work() -> None:
    store = Store(RAYJOBS)
    one, two = obj("a", 0), obj("a", 0)
    one["metadata"]["resourceVersion"], two["metadata"]["resourceVersion"] = "x7f", "b2"
    store.upsert(one)
    assert kinds(store.upsert(two)) == ["MODIFIED"]
    assert store.upsert(two) == []
    assert store.resource_version == "b2"


def test_bookmarks_never_go_back() -> None:
    store = Store(RAYJOBS)
    store.advance("7")
    store.advance("5")
    store.advance("")
    assert store.resource_version == "7"


def test_indexes_follow_changes_and_deletions() -> None:
    store = Store(RAYJOBS, ALL)
    store.upsert(obj("b", 1, label="red"))
    store.upsert(obj("a", 2, label="red"))
    assert [o["metadata"]["name"] for o in store.by_index("label", "red")] == ["a", "b"]
    store.upsert(obj("a", 3, label="blue"))
    assert [o["metadata"]["name"] for o in store.by_index("label", "red")] == ["b"]
    store.remove(obj("b", 4))
    assert store.by_index("label", "red") == ()
    with pytest.raises(KeyError):
        store.by_index("colour", "red")


def test_an_index_that_fails_leaves_the_store_as_it_was() -> None:
    store = Store(RAYJOBS, {"label": lambda o: [o["label"]]})
    store.upsert(obj("a", 1, label="red"))
    with pytest.raises(KeyError):
        store.upsert(obj("a", 2))
    assert store.by_index("label", "red") == (obj("a", 1, label="red"),)


def test_objects_are_kept_without_what_nobody_reads() -> None:
    store = Store(RAYJOBS, project=keep("spec.suspend", "status", "spec.none.at.all"))
    full = obj("a", 1, spec={"suspend": True, "rayClusterSpec": {"big": 1}}, status={"s": 1}, kind="RayJob")
    full["metadata"]["managedFields"] = [{"manager": "x"}]
    full["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "1"}
    kept = store.prepare(full)
    assert kept == {
        "kind": "RayJob",
        "metadata": obj("a", 1)["metadata"] | {"annotations": {"mine": "1"}},
        "spec": {"suspend": True},
        "status": {"s": 1},
    }


def test_a_projection_that_drops_the_identity_is_refused() -> None:
    store = Store(RAYJOBS, project=lambda o: {"metadata": {"name": o["metadata"]["name"]}})
    with pytest.raises(ValueError, match="identity"):
        store.prepare(obj("a", 1))


def test_listing_by_namespace() -> None:
    store = Store(RAYJOBS)
    store.upsert(obj("a", 1))
    other = obj("b", 2)
    other["metadata"]["namespace"] = "other"
    store.upsert(other)
    assert [o["metadata"]["name"] for o in store.list("other")] == ["b"]
    assert len(list(store.list())) == len(store) == 2
    assert store.get(Key("ns", "a")) == obj("a", 1)


EVENTS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["upsert", "remove"]), st.sampled_from(["red", "blue"])),
    max_size=30,
)


@given(EVENTS, st.randoms(use_true_random=False))
def test_replayed_and_shuffled_repeats_never_change_the_end_state(events: list[tuple[str, str, str]], rng: Any) -> None:
    """Each event is followed by any number of stale ones; the indexes always equal a rebuild."""
    store = Store(RAYJOBS, ALL)
    model: dict[str, Json] = {}
    seen: list[Json] = []
    for version, (name, action, label) in enumerate(events, start=1):
        alive = model.get(name)
        uid = alive["metadata"]["uid"] if alive else f"u{version}"
        event = obj(name, version, uid=uid, label=label)
        if action == "remove" and alive is None:
            continue
        getattr(store, action)(event)
        model.pop(name, None)
        if action == "upsert":
            model[name] = event
        seen.append(event)
        stale = rng.choice(seen)
        if stale["metadata"]["uid"] == uid and name in model:
            store.upsert(stale)
    assert {key.name: store.get(key) for key in [*store.keys()]} == model
    for value in ("red", "blue"):
        names = [o["metadata"]["name"] for o in store.by_index("label", value)]
        assert names == sorted(name for name, o in model.items() if o["label"] == value)
