"""The kinds of patch over HTTP: which are taken by what, and what they leave."""

from __future__ import annotations

from typing import Any


async def test_patches_over_http(api: Any) -> None:
    await api.make(api.config_map("a", x="1"))
    path = f"{api.config_maps}/a"
    kinds = {
        "application/merge-patch+json": {"data": {"merge": "1"}},
        "application/strategic-merge-patch+json": {"data": {"strategic": "1"}},
        "application/json-patch+json": [{"op": "add", "path": "/data/json", "value": "1"}],
    }
    for media_type, body in kinds.items():
        assert (await api.call("PATCH", path, body, media_type)).code == 200
    assert (await api.get(path)).body["data"] == {"x": "1", "merge": "1", "strategic": "1", "json": "1"}
    stale = await api.merge(path, {"metadata": {"resourceVersion": "1"}, "data": {"x": "2"}})
    assert stale.code == 409


async def test_custom_resources_take_no_strategic_patch(api: Any) -> None:
    await api.make(api.widget("a"))
    reply = await api.call("PATCH", f"{api.widgets}/a", {}, "application/strategic-merge-patch+json")
    assert reply.code == 415
    assert "application/merge-patch+json" in reply.message
    missing = await api.merge(f"{api.widgets}/nope", {"spec": {}})
    assert missing.code == 404
