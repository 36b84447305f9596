"""Finalizers and ownerReferences: what goes, what waits, what stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slipway_local.apiserver.server import ApiServer

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


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


async def test_what_was_left_over_is_found_at_the_next_start(
    tmp_path: Path, widget_crd: dict[str, Any], connect: Callable[[ApiServer], Any]
) -> None:
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        owner = await api.make(api.widget("owner"))
        await api.make(api.config_map("dependent", metadata=owned_by(owner)))
        await server.housekeeping.stop()
        await api.delete(f"{api.widgets}/owner")
        assert (await api.get(f"{CONFIG_MAPS}/dependent")).code == 200
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        await api.gone(f"{CONFIG_MAPS}/dependent")
