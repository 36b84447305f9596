"""Server-side apply: ownership, conflicts, removal, lists by key."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from slipway_local.apiserver.fieldset import FieldSet, render

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def owners(obj: dict[str, Any]) -> dict[tuple[str, str, str], set[str]]:
    """(manager, operation, subresource) -> rendered paths."""
    return {
        (entry["manager"], entry["operation"], entry.get("subresource", "")): {
            render(path) for path in FieldSet.from_v1(entry["fieldsV1"])
        }
        for entry in obj["metadata"].get("managedFields", [])
    }


async def test_an_applier_owns_what_it_said(api: Any) -> None:
    made = await api.apply(f"{api.widgets}/a", api.widget("a", label="abc", parts=[{"name": "p", "note": "n"}]))
    assert made.code == 201
    assert made.body["spec"]["color"] == "red"
    assert owners(made.body) == {
        ("me", "Apply", ""): {
            ".spec.size",
            ".spec.label",
            '.spec.parts[name="p"]',
            '.spec.parts[name="p"].name',
            '.spec.parts[name="p"].note',
        }
    }
    entry = made.body["metadata"]["managedFields"][0]
    assert (entry["apiVersion"], entry["fieldsType"]) == ("test.example.com/v1", "FieldsV1")
    again = await api.apply(f"{api.widgets}/a", api.widget("a", label="abc", parts=[{"name": "p", "note": "n"}]))
    assert again.code == 200
    assert again.body == made.body


async def test_what_is_no_longer_applied_goes(api: Any) -> None:
    path = f"{api.widgets}/a"
    parts = [{"name": "p", "note": "n"}, {"name": "q"}]
    await api.apply(path, api.widget("a", label="abc", parts=parts, counts={"x": 1, "y": 2}, tags=["s", "t"]))
    later = await api.apply(path, api.widget("a", parts=[{"name": "q"}], counts={"y": 2}, tags=["t"]))
    assert later.body["spec"] == {
        "size": 1,
        "color": "red",
        "nested": {"depth": 3},
        "parts": [{"name": "q", "amount": 1}],
        "counts": {"y": 2},
        "tags": ["t"],
    }


async def test_others_keep_what_is_theirs(api: Any) -> None:
    path = f"{api.widgets}/a"
    await api.apply(path, api.widget("a", parts=[{"name": "mine"}], counts={"mine": 1}))
    theirs = {**api.widget("a"), "spec": {"parts": [{"name": "theirs", "note": "n"}], "counts": {"theirs": 2}}}
    both = await api.apply(path, theirs, manager="other")
    assert [part["name"] for part in both.body["spec"]["parts"]] == ["mine", "theirs"]
    mine = await api.apply(path, api.widget("a"))
    assert [part["name"] for part in mine.body["spec"]["parts"]] == ["theirs"]
    assert mine.body["spec"]["counts"] == {"theirs": 2}


async def test_a_conflict_names_manager_and_field(api: Any) -> None:
    path = f"{api.widgets}/a"
    await api.apply(path, api.widget("a", label="abc", counts={"x": 1}))
    clash = {**api.widget("a"), "spec": {"label": "xyz", "counts": {"x": 2}}}
    reply = await api.apply(path, clash, manager="other")
    assert (reply.code, reply.body["reason"]) == (409, "Conflict")
    assert reply.message == 'Apply failed with 2 conflicts: conflicts with "me":\n- .spec.label\n- .spec.counts.x'
    assert reply.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "me"', "field": ".spec.label"},
        {"reason": "FieldManagerConflict", "message": 'conflict with "me"', "field": ".spec.counts.x"},
    ]
    one = await api.apply(path, {**api.widget("a"), "spec": {"label": "xyz"}}, manager="other")
    assert one.message == 'Apply failed with 1 conflict: conflict with "me": .spec.label'
    forced = await api.apply(path, clash, manager="other", force="true")
    assert forced.body["spec"]["label"] == "xyz"
    assert owners(forced.body)[("other", "Apply", "")] == {".spec.label", ".spec.counts.x"}
    assert ".spec.label" not in owners(forced.body)[("me", "Apply", "")]


async def test_the_same_value_is_owned_together(api: Any) -> None:
    path = f"{api.widgets}/a"
    await api.apply(path, api.widget("a", label="abc"))
    both = await api.apply(path, {**api.widget("a"), "spec": {"label": "abc"}}, manager="other")
    assert both.code == 200
    mine = await api.apply(path, api.widget("a"))
    assert mine.body["spec"]["label"] == "abc"
    neither = await api.apply(path, {**api.widget("a"), "spec": {}}, manager="other")
    assert "label" not in neither.body["spec"]


async def test_updates_own_what_they_change(api: Any) -> None:
    path = f"{api.widgets}/a"
    await api.apply(path, api.widget("a", label="abc"))
    updated = await api.merge(path, {"spec": {"label": "xyz"}}, fieldManager="editor")
    held = owners(updated.body)
    assert held[("editor", "Update", "")] == {".spec.label"}
    assert held[("me", "Apply", "")] == {".spec.size"}
    clash = await api.apply(path, api.widget("a", label="abc"))
    assert clash.code == 409
    assert 'conflict with "editor" using test.example.com/v1: .spec.label' in clash.message
    created = await api.make(api.widget("b", label="abc"))
    assert owners(created)[("tester", "Update", "")] >= {".spec.label", ".spec.size", ".spec.color"}


async def test_status_has_owners_of_its_own(api: Any) -> None:
    path = f"{api.widgets}/a"
    await api.apply(path, {**api.widget("a"), "status": {"state": "forged"}})
    status = {
        "apiVersion": "test.example.com/v1",
        "kind": "Widget",
        "metadata": {"name": "a"},
        "spec": {"size": 9},
        "status": {"state": "up", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    reply = await api.apply(f"{path}/status", status, manager="controller")
    assert reply.code == 200
    assert reply.body["spec"]["size"] == 1
    held = owners(reply.body)
    assert held[("me", "Apply", "")] == {".spec.size"}
    assert held[("controller", "Apply", "status")] == {
        ".status.state",
        '.status.conditions[type="Ready"]',
        '.status.conditions[type="Ready"].type',
        '.status.conditions[type="Ready"].status',
    }
    other = {**status, "status": {"conditions": [{"type": "Done", "status": "False"}]}}
    both = await api.apply(f"{path}/status", other, manager="second")
    assert [c["type"] for c in both.body["status"]["conditions"]] == ["Ready", "Done"]
    again = await api.apply(path, api.widget("a", size=2))
    assert again.body["status"]["state"] == "up"


async def test_client_side_apply_hands_over_to_server_side(api: Any) -> None:
    config = api.widget("a", label="abc")
    annotated = {**config, "metadata": {"name": "a", "annotations": {LAST_APPLIED: orjson.dumps(config).decode()}}}
    await api.post(api.widgets, annotated, fieldManager="kubectl-client-side-apply")
    path = f"{api.widgets}/a"
    stranger = await api.apply(path, api.widget("a", label="xyz"), manager="stranger")
    assert stranger.code == 409
    reply = await api.apply(path, api.widget("a", label="xyz"), manager="kubectl")
    assert reply.code == 200
    assert reply.body["spec"]["label"] == "xyz"


async def test_managed_fields_can_be_migrated_and_reset(api: Any) -> None:
    path = f"{api.widgets}/a"
    made = (await api.apply(path, api.widget("a", label="abc"))).body
    entries = [{**made["metadata"]["managedFields"][0], "manager": "renamed"}]
    moved = await api.call(
        "PATCH",
        path,
        [{"op": "replace", "path": "/metadata/managedFields", "value": entries}],
        "application/json-patch+json",
    )
    assert set(owners(moved.body)) == {("renamed", "Apply", "")}
    reset = await api.merge(path, {"metadata": {"managedFields": [{}]}})
    assert "managedFields" not in reset.body["metadata"]
    first = await api.apply(path, api.widget("a", label="abc"), force="true")
    assert ("before-first-apply", "Update", "") in owners(first.body)


@pytest.mark.parametrize(
    ("body", "params", "code", "message"),
    [
        ({"spec": {"sise": 1}}, {}, 500, ".spec.sise: field not declared in schema"),
        ({"spec": {"size": "x"}}, {}, 500, ".spec.size: expected numeric (int or float), got string"),
        ({"spec": {"parts": [{"name": "a"}, {"name": "a"}]}}, {}, 500, "duplicate entries for key"),
        ({"spec": {"parts": [{"note": "a"}]}}, {}, 500, 'omits all key fields ["name"]'),
        ({"spec": {"size": 99}}, {}, 422, "should be less than or equal to 10"),
        ({"apiVersion": "v1"}, {}, 400, "invalid object type: /v1, Kind=Widget"),
        ({"apiVersion": "test.example.com/v2"}, {}, 400, "invalid object type: test.example.com/v2, Kind=Widget"),
        ({"metadata": {"name": "b"}}, {}, 400, "does not match the name on the URL"),
        ({"metadata": {"managedFields": []}}, {}, 400, "metadata.managedFields must be nil"),
        ({"metadata": {"uid": "x"}}, {}, 409, "uid mismatch"),
        ({}, {"manager": ""}, 422, "is required for apply patch"),
    ],
)
async def test_configurations_that_do_not_fit(
    api: Any, body: dict[str, Any], params: dict[str, str], code: int, message: str
) -> None:
    reply = await api.apply(f"{api.widgets}/a", {**api.widget("a"), **body}, **params)
    assert reply.code == code, reply.body
    assert message in reply.message
    assert (await api.get(f"{api.widgets}/a")).code == 404


async def test_apply_takes_yaml(api: Any) -> None:
    head = "apiVersion: test.example.com/v1\nkind: Widget\nmetadata: {name: a}\n"
    body = head + "spec:\n  size: 3\n  when: 2026-01-01T00:00:00Z\n"
    made = await api.apply(f"{api.widgets}/a", body.encode())
    assert made.body["spec"]["when"] == "2026-01-01T00:00:00Z"
    double = await api.apply(f"{api.widgets}/a", (body + "  size: 4\n").encode(), fieldValidation="Strict")
    assert double.code == 400
    assert '"size"' in double.message
