"""Create, read, update, delete: identity, versions, status apart, namespaces, and bodies that mean harm."""

from __future__ import annotations

from typing import Any

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


# --- who gets in, and what ----------------------------------------------------------------------------------------


async def test_only_the_token_opens(api: Any) -> None:
    for token in ("", "Bearer", "Bearer wrong", "Basic abc"):
        for path in ("/api", "/apis/test.example.com/v1", api.widgets, "/openapi/v3", "/nowhere"):
            reply = await api.call("GET", path, headers={"Authorization": token})
            assert (reply.code, reply.body["reason"]) == (401, "Unauthorized")
    for path in ("/healthz", "/readyz", "/livez", "/version"):
        assert (await api.call("GET", path, headers={"Authorization": ""})).code == 200
