"""Who gets in, and what is refused here that kube-apiserver takes."""

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


async def test_nesting_has_a_limit(api: Any) -> None:
    await api.make(api.widget("deep", free={}))
    operations = [{"op": "add", "path": "/spec/free" + "/a" * n, "value": {}} for n in range(1, 400)]
    patched = await api.call("PATCH", f"{api.widgets}/deep", operations, "application/json-patch+json")
    assert patched.code in (400, 422)


async def test_openapi_v2_is_not_there(api: Any) -> None:
    assert (await api.get("/openapi/v2")).code == 404


async def test_definitions_that_ask_for_a_conversion_webhook_are_refused(api: Any, widget_crd: dict[str, Any]) -> None:
    widget_crd["metadata"]["name"] = "gadgets.test.example.com"
    widget_crd["spec"] |= {"names": {"kind": "Gadget", "plural": "gadgets"}, "conversion": {"strategy": "Webhook"}}
    reply = await api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", widget_crd)
    assert reply.code == 422
    assert "spec.conversion.strategy" in reply.message
