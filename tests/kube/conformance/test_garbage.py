"""Finalizers and ownerReferences: what goes, what waits, what stays."""

from __future__ import annotations

from typing import Any


def owned_by(owner: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Metadata of a dependent."""
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        **more,
    }
    return {"ownerReferences": [reference]}


async def test_finalizers_hold_an_object(api: Any) -> None:
    made = await api.make(api.widget("a", metadata={"finalizers": ["test.example.com/one", "test.example.com/two"]}))
    path = f"{api.widgets}/a"
    deleted = await api.delete(path)
    assert deleted.body["metadata"]["deletionTimestamp"]
    assert deleted.body["metadata"]["generation"] == made["metadata"]["generation"] + 1
    again = await api.delete(path)
    assert again.body["metadata"]["resourceVersion"] == deleted.body["metadata"]["resourceVersion"]
    added = await api.merge(path, {"metadata": {"finalizers": ["test.example.com/one", "test.example.com/three"]}})
    assert added.code == 422
    assert "no new finalizers can be added if the object is being deleted" in added.message
    alive = await api.merge(path, {"metadata": {"deletionTimestamp": None}})
    assert alive.body["metadata"]["deletionTimestamp"] == deleted.body["metadata"]["deletionTimestamp"]
    assert (await api.merge(path, {"metadata": {"finalizers": ["test.example.com/two"]}})).code == 200
    async with api.watch(api.widgets) as stream:
        last = await api.merge(path, {"metadata": {"finalizers": []}})
        assert last.code == 200
        await stream.until(2)
        assert stream.said() == [("ADDED", "a"), ("DELETED", "a")]
    assert (await api.get(path)).code == 404


async def test_dependents_follow_their_owner(api: Any) -> None:
    owner = await api.make(api.widget("owner"))
    middle = await api.make(api.config_map("middle", metadata=owned_by(owner)))
    await api.make(api.config_map("leaf", metadata=owned_by(middle)))
    await api.make(api.config_map("stranger"))
    await api.delete(f"{api.widgets}/owner")
    await api.gone(f"{api.config_maps}/middle")
    await api.gone(f"{api.config_maps}/leaf")
    assert (await api.get(f"{api.config_maps}/stranger")).code == 200


async def test_the_last_owner_counts(api: Any) -> None:
    first, second = await api.make(api.widget("first")), await api.make(api.widget("second"))
    both = owned_by(first)["ownerReferences"] + owned_by(second)["ownerReferences"]
    await api.make(api.config_map("shared", metadata={"ownerReferences": both}))
    await api.delete(f"{api.widgets}/first")

    async def released() -> bool:
        owners = (await api.get(f"{api.config_maps}/shared")).body["metadata"]["ownerReferences"]
        return [owner["name"] for owner in owners] == ["second"]

    await api.eventually(released)
    await api.delete(f"{api.widgets}/second")
    await api.gone(f"{api.config_maps}/shared")


async def test_an_owner_is_known_by_its_uid(api: Any) -> None:
    owner = await api.make(api.widget("owner"))
    await api.delete(f"{api.widgets}/owner")
    await api.make(api.widget("owner"))
    await api.make(api.config_map("late", metadata=owned_by(owner)))
    await api.gone(f"{api.config_maps}/late")
    unknown = {**owner, "apiVersion": "unknown.example.com/v1"}
    await api.make(api.config_map("kept", metadata=owned_by(unknown)))
    live = await api.make(api.widget("live"))
    await api.make(api.config_map("gone", metadata=owned_by({**live, "metadata": {"name": "live", "uid": "other"}})))
    await api.gone(f"{api.config_maps}/gone")
    assert (await api.get(f"{api.config_maps}/kept")).code == 200


async def test_orphans_stay(api: Any) -> None:
    owner = await api.make(api.widget("owner"))
    await api.make(api.config_map("orphan", metadata=owned_by(owner)))
    await api.delete(f"{api.widgets}/owner", {"propagationPolicy": "Orphan"})
    await api.gone(f"{api.widgets}/owner")
    orphan = await api.get(f"{api.config_maps}/orphan")
    assert orphan.code == 200
    assert "ownerReferences" not in orphan.body["metadata"]


async def test_foreground_deletion_waits_for_blocking_dependents(api: Any) -> None:
    owner = await api.make(api.widget("owner"))
    held = {**owned_by(owner, blockOwnerDeletion=True), "finalizers": ["test.example.com/hold"]}
    await api.make(api.config_map("held", metadata=held))
    await api.make(api.config_map("loose", metadata=owned_by(owner)))
    deleted = await api.delete(f"{api.widgets}/owner", propagationPolicy="Foreground")
    assert deleted.body["metadata"]["finalizers"] == ["foregroundDeletion"]
    await api.gone(f"{api.config_maps}/loose")

    async def marked() -> bool:
        return "deletionTimestamp" in (await api.get(f"{api.config_maps}/held")).body["metadata"]

    await api.eventually(marked)
    assert (await api.get(f"{api.widgets}/owner")).code == 200
    await api.merge(f"{api.config_maps}/held", {"metadata": {"finalizers": None}})
    await api.gone(f"{api.widgets}/owner")
    assert (await api.get(f"{api.config_maps}/held")).code == 404
