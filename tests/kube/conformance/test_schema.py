"""Pruning, defaults, validation and CEL rules, in kube-apiserver's words; and the definitions themselves."""

from __future__ import annotations

from typing import Any

import pytest

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"size": 0}, "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"),
        ({"size": 11}, "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10"),
        ({"size": "x"}, 'spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"'),
        ({"size": 1.5}, 'spec.size: Invalid value: "float64": spec.size in body must be of type int32: "float64"'),
        (
            {"size": 2**40},
            '<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.size',
        ),
        ({"size": True}, 'spec.size: Invalid value: "": spec.size in body must be of type int32: ""'),
        ({"size": None}, "spec.size: Required value"),
        ({"color": "green"}, 'spec.color: Unsupported value: "green": supported values: "red", "blue"'),
        ({"label": "a"}, 'spec.label: Invalid value: "a": spec.label in body should be at least 2 chars long'),
        ({"label": "abcdefghi"}, "spec.label: Too long: may not be more than 8 bytes"),
        ({"label": "AB"}, "spec.label: Invalid value: \"AB\": spec.label in body should match '^[a-z]+$'"),
        ({"label": "ab\n"}, "spec.label in body should match '^[a-z]+$'"),
        ({"ratio": 0}, "spec.ratio: Invalid value: 0: spec.ratio in body should be greater than 0"),
        ({"when": "yesterday"}, 'spec.when in body must be of type date-time: "yesterday"'),
        ({"when": "2026-13-01T00:00:00Z"}, "spec.when in body must be of type date-time"),
        ({"port": [1]}, "spec.port in body must be of type integer,string"),
        ({"tags": ["a", "b", "a"]}, 'spec.tags[2]: Duplicate value: "a"'),
        ({"tags": list("abcdef")}, "spec.tags: Too many: 6: must have at most 5 items"),
        ({"counts": {"a": "b"}}, "spec.counts.a in body must be of type integer"),
        ({"parts": [{"amount": 1}]}, "spec.parts[0].name: Required value"),
        ({"parts": [{"name": "a"}, {"name": "a"}]}, 'spec.parts[1]: Duplicate value: {"name":"a"}'),
        ({"parts": {}}, 'spec.parts: Invalid value: "object": spec.parts in body must be of type array: "object"'),
    ],
)
async def test_what_is_wrong_is_said_with_its_path(api: Any, spec: dict[str, Any], message: str) -> None:
    reply = await api.post(api.widgets, api.widget("a", **spec))
    assert (reply.code, reply.body["reason"]) == (422, "Invalid")
    assert message in reply.message
    assert reply.message.startswith('Widget.test.example.com "a" is invalid: ')
    fields = [cause["field"] for cause in reply.body["details"]["causes"]]
    assert message.split(": ", maxsplit=1)[0].split(" in body", maxsplit=1)[0] in fields


async def test_everything_wrong_is_said_at_once(api: Any) -> None:
    body = {**api.widget("a"), "spec": {"color": "green", "label": "A"}}
    reply = await api.post(api.widgets, body)
    assert {cause["field"] for cause in reply.body["details"]["causes"]} == {
        "spec.color",
        "spec.label",
        "spec.size",
        "<nil>",
    }
    assert "some validation rules were not checked" in reply.message


async def test_spec_may_be_left_out_unless_required(api: Any) -> None:
    body = api.widget("a")
    del body["spec"]
    assert (await api.post(api.widgets, body)).code == 201


async def test_defaults_are_filled_in(api: Any) -> None:
    made = await api.make(api.widget("a", parts=[{"name": "p"}], color=None))
    assert made["spec"] == {
        "size": 1,
        "color": "red",
        "nested": {"depth": 3},
        "parts": [{"name": "p", "amount": 1}],
    }
    cleared = await api.merge(f"{api.widgets}/a", {"spec": {"nested": None, "color": None}})
    assert cleared.body["spec"]["nested"] == {"depth": 3}
    assert cleared.body["spec"]["color"] == "red"


async def test_null_where_it_is_allowed(api: Any) -> None:
    assert (await api.make(api.widget("a", maybe=None)))["spec"]["maybe"] is None
    pruned = await api.make(api.widget("b", label=None, parts=[{"name": "p", "note": None}], counts={"a": None}))
    assert "label" not in pruned["spec"]
    assert pruned["spec"]["parts"] == [{"name": "p", "amount": 1}]
    assert pruned["spec"]["counts"] == {}
    refused = await api.post(api.widgets, api.widget("c", tags=[None]))
    assert 'spec.tags[0]: Invalid value: "null": spec.tags[0] in body must be of type string: "null"' in refused.message


async def test_unknown_fields_are_refused_pruned_or_warned_about(api: Any) -> None:
    body = api.widget("a", sise=3, parts=[{"name": "p", "extra": 1}], free={"missing": 1, "any": {"thing": 1}})
    strict = await api.post(api.widgets, body, fieldValidation="Strict")
    assert strict.code == 400
    assert strict.message == (
        'Widget in version "v1" cannot be handled as a Widget: strict decoding error: '
        'unknown field "spec.parts[0].extra", unknown field "spec.sise"'
    )
    warned = await api.post(api.widgets, body, fieldValidation="Warn", dryRun="All")
    assert '299 - "unknown field \\"spec.sise\\""' in warned.headers.getall("Warning")
    ignored = await api.post(api.widgets, body, fieldValidation="Ignore")
    assert "Warning" not in ignored.headers
    assert "sise" not in ignored.body["spec"]
    assert ignored.body["spec"]["parts"] == [{"name": "p", "amount": 1}]
    assert ignored.body["spec"]["free"] == {"missing": 1, "any": {"thing": 1}}
    metadata = await api.post(api.widgets, api.widget("b", metadata={"lables": {}}), fieldValidation="Strict")
    assert 'unknown field "metadata.lables"' in metadata.message
    patch = await api.merge(f"{api.widgets}/a", {"spec": {"sise": 1}}, fieldValidation="Strict")
    assert patch.code == 422
    assert 'strict decoding error: unknown field "spec.sise"' in patch.message
    odd = await api.post(api.widgets, body, fieldValidation="Maybe")
    assert odd.code == 422


async def test_duplicate_fields(api: Any) -> None:
    body = (
        '{"apiVersion":"test.example.com/v1","kind":"Widget","metadata":{"name":"a"},'
        '"spec":{"size":1,"size":2,"parts":[{"name":"x","name":"y"}]}}'
    )
    strict = await api.call("POST", api.widgets, body, params={"fieldValidation": "Strict"})
    assert strict.code == 400
    assert 'duplicate field "spec.size"' in strict.message
    assert 'duplicate field "spec.parts[0].name"' in strict.message
    warned = await api.call("POST", api.widgets, body)
    assert warned.body["spec"]["size"] == 2
    assert len(warned.headers.getall("Warning")) == 2


# --- CEL ----------------------------------------------------------------------------------------------------------


async def test_rules_say_their_message_at_their_path(api: Any) -> None:
    reply = await api.post(api.widgets, api.widget("a", ratio=200, size=7))
    assert reply.code == 422
    causes = {cause["field"]: cause["message"] for cause in reply.body["details"]["causes"]}
    assert causes["spec.ratio"] == "Invalid value: ratio is too high"
    assert causes["spec"] == "Invalid value: seven is unlucky in red"


async def test_a_rule_that_ends_in_an_error_has_failed(api: Any) -> None:
    reply = await api.post(api.widgets, api.widget("a", needs={"other": 1}))
    assert reply.code == 422
    assert "no such key: missing evaluating rule: needs.missing must be 1" in reply.message


async def test_rules_see_the_name(api: Any) -> None:
    reply = await api.post(api.widgets, api.widget("a" * 21))
    assert reply.code == 422
    assert "<nil>: Invalid value: name is too long" in reply.message


async def test_transition_rules(api: Any) -> None:
    await api.make(api.widget("a", fixed="x", parts=[{"name": "p", "note": "n"}, {"name": "q"}]))
    path = f"{api.widgets}/a"
    changed = await api.merge(path, {"spec": {"fixed": "y"}})
    assert changed.code == 422
    assert 'spec.fixed: Invalid value: "y": is immutable' in changed.message
    reordered = await api.merge(path, {"spec": {"parts": [{"name": "q"}, {"name": "p"}]}})
    assert "spec.parts[1]: Invalid value: note may not be removed" in reordered.message
    removed = await api.merge(path, {"spec": {"parts": [{"name": "q"}], "fixed": None}})
    assert removed.code == 200


async def test_what_was_wrong_before_may_stay(api: Any, widget_crd: dict[str, Any]) -> None:
    crd = gadgets(api, widget_crd)
    path = f"{await served(api, crd)}/a"
    gadget = {**api.widget("a", label="abc", size=5), "kind": crd["spec"]["names"]["kind"]}
    assert (await api.post(path.removesuffix("/a"), gadget)).code == 201
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["label"]["maxLength"] = 2
    spec["x-kubernetes-validations"].append({"rule": "self.size < 3", "message": "size must be small now"})
    patched = await api.merge(f"{CRDS}/{crd['metadata']['name']}", {"spec": crd["spec"]})
    assert patched.code == 200

    async def in_force() -> bool:
        new = {**gadget, "metadata": {"name": "b"}}
        return (await api.post(path.removesuffix("/a"), new, dryRun="All")).code == 422

    await api.eventually(in_force)
    assert (await api.merge(path, {"metadata": {"labels": {"x": "y"}}})).code == 200
    assert (await api.merge(f"{path}/status", {"status": {"state": "up"}})).code == 200
    touched = await api.merge(path, {"spec": {"color": "blue"}})
    assert "size must be small now" in touched.message
    assert "spec.label" not in touched.message
    assert (await api.merge(path, {"spec": {"label": "abcd"}})).code == 422


# --- the definitions ----------------------------------------------------------------------------------------------


def gadgets(api: Any, crd: dict[str, Any]) -> dict[str, Any]:
    """The test's definition under names that no other test has."""
    plural = f"gadgets{api.namespace}"
    crd["metadata"]["name"] = f"{plural}.test.example.com"
    crd["spec"]["names"] = {"kind": plural.capitalize(), "plural": plural}
    return crd


async def served(api: Any, crd: dict[str, Any]) -> str:
    """Create a definition; the path of its objects, once it is served."""
    made = await api.post(CRDS, crd)
    assert made.code == 201, made.body
    path: str = api.test(crd["spec"]["names"]["plural"])

    async def answers() -> bool:
        return (await api.get(path)).code == 200

    await api.eventually(answers)
    return path


async def test_a_definition_is_served_and_takes_its_objects_along(api: Any, widget_crd: dict[str, Any]) -> None:
    crd = gadgets(api, widget_crd)
    name = f"{CRDS}/{crd['metadata']['name']}"
    path = await served(api, crd)
    made = (await api.get(name)).body
    conditions = {c["type"]: c["status"] for c in made["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    kind = crd["spec"]["names"]["kind"]
    assert made["spec"]["names"]["listKind"] == f"{kind}List"
    assert (await api.post(path, {**api.widget("g"), "kind": kind})).code == 201
    await api.delete(name)
    await api.gone(name)
    await api.gone(path)
    crd["metadata"] = {"name": crd["metadata"]["name"]}
    assert await served(api, crd) == path
    assert (await api.get(path)).body["items"] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda crd: crd["metadata"].update(name="other.test.example.com"), "metadata.name"),
        (lambda crd: crd["spec"].update(group="nodots"), "spec.group"),
        (lambda crd: crd["spec"].update(scope="Galaxy"), "spec.scope"),
        (lambda crd: crd["spec"]["names"].pop("kind"), "spec.names.kind"),
        (lambda crd: crd["spec"]["versions"][0].update(storage=False), "spec.versions"),
        (lambda crd: crd["spec"]["versions"][0].pop("schema"), "spec.versions[0].schema.openAPIV3Schema"),
        (lambda crd: _spec_schema(crd).pop("type"), "properties[spec].type"),
        (lambda crd: _spec_schema(crd)["properties"]["atoms"].pop("items"), "properties[atoms].items"),
        (lambda crd: _spec_schema(crd)["properties"]["label"].update(pattern="("), "properties[label].pattern"),
        (lambda crd: _rule(crd, "self.size >"), "x-kubernetes-validations[0].rule"),
        (
            # The default is {} here; that depth has one of its own does not help.
            lambda crd: _spec_schema(crd)["properties"]["nested"].update(
                {"x-kubernetes-validations": [{"rule": "self.depth > 1"}]}
            ),
            "properties[nested].default",
        ),
        (lambda crd: _rule(crd, "self.size.frobnicate()"), "x-kubernetes-validations[0].rule"),
        (
            lambda crd: crd["spec"]["versions"][0]["additionalPrinterColumns"][0].update(type="color"),
            "additionalPrinterColumns[0].type",
        ),
        (
            lambda crd: crd["spec"]["versions"][0]["additionalPrinterColumns"][0].update(jsonPath="size"),
            "additionalPrinterColumns",
        ),
    ],
)
async def test_definitions_that_cannot_be_served(api: Any, widget_crd: dict[str, Any], change: Any, field: str) -> None:
    crd = gadgets(api, widget_crd)
    change(crd)
    reply = await api.post(CRDS, crd)
    assert reply.code == 422
    assert field in reply.message


def _spec_schema(crd: dict[str, Any]) -> Any:
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def _rule(crd: dict[str, Any], rule: str) -> None:
    _spec_schema(crd)["x-kubernetes-validations"] = [{"rule": rule}]


async def test_two_versions_show_the_same_objects(api: Any, widget_crd: dict[str, Any]) -> None:
    crd = gadgets(api, widget_crd)
    crd["spec"]["versions"].append({**crd["spec"]["versions"][0], "name": "v1beta1", "storage": False})
    new = await served(api, crd)
    old = api.test(crd["spec"]["names"]["plural"], version="v1beta1")
    gadget = {**api.widget("g"), "kind": crd["spec"]["names"]["kind"], "apiVersion": "test.example.com/v1beta1"}
    made = await api.post(old, gadget)
    assert made.body["apiVersion"] == "test.example.com/v1beta1"
    assert (await api.get(f"{new}/g")).body["apiVersion"] == "test.example.com/v1"
    assert (await api.get(old)).body["items"][0]["apiVersion"] == "test.example.com/v1beta1"
    group = (await api.get("/apis/test.example.com")).body
    assert [row["version"] for row in group["versions"]] == ["v1", "v1beta1"]
    await api.delete(f"{CRDS}/{crd['metadata']['name']}")


async def test_ray_objects_are_kept_as_written(api: Any) -> None:
    path = f"/apis/ray.io/v1/namespaces/{api.namespace}/rayjobs"
    container = {"name": "ray-head", "image": "slipway/jobs:0.1.0", "resources": {"limits": {"cpu": "1"}}}
    spec = {
        "entrypoint": "python -m x",
        "rayClusterSpec": {
            "rayVersion": "2.60.0",
            "headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}},
        },
    }
    body = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "r"}, "spec": spec}
    made = await api.post(path, body, fieldValidation="Strict")
    assert made.code == 201, made.body
    kept = made.body["spec"]
    assert kept["entrypoint"] == spec["entrypoint"]
    assert kept["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"] == [container]
    status = await api.merge(f"{path}/r/status", {"status": {"jobStatus": "RUNNING", "dashboardURL": "http://x"}})
    # KubeRay's own definition adds counters with defaults.
    assert status.body["status"].items() >= {"jobStatus": "RUNNING", "dashboardURL": "http://x"}.items()
