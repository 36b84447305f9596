"""Create, read, update, delete: identity, versions, status apart, namespaces, and bodies that mean harm."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest


async def test_create_sets_what_the_server_sets(api: Any) -> None:
    obj = api.widget("a", metadata={"uid": "mine", "creationTimestamp": "1999-01-01T00:00:00Z", "generation": 9})
    made = await api.make({**obj, "status": {"state": "forged"}})
    assert made["metadata"]["uid"] != "mine"
    assert made["metadata"]["generation"] == 1
    assert made["metadata"]["creationTimestamp"] > "2020"
    assert made["metadata"]["namespace"] == api.namespace
    assert "status" not in made
    assert (await api.get(f"{api.widgets}/a")).body == made


async def test_a_name_is_taken_once(api: Any) -> None:
    await api.make(api.widget("a"))
    again = await api.post(api.widgets, api.widget("a"))
    assert (again.code, again.body["reason"]) == (409, "AlreadyExists")
    assert again.message == 'widgets.test.example.com "a" already exists'
    assert again.body["details"] == {"name": "a", "group": "test.example.com", "kind": "widgets"}


async def test_generate_name(api: Any) -> None:
    obj = api.widget("x")
    obj["metadata"] = {"generateName": "run-"}
    names = {(await api.make(orjson.loads(orjson.dumps(obj))))["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("run-") and len(name) == 9 for name in names)


async def test_resource_version_grows_over_all_kinds(api: Any) -> None:
    versions = []
    for number in range(3):
        versions.append(int((await api.make(api.widget(f"w{number}")))["metadata"]["resourceVersion"]))
        versions.append(int((await api.make(api.config_map(f"c{number}")))["metadata"]["resourceVersion"]))
    assert versions == sorted(set(versions))


async def test_update_needs_the_current_version(api: Any) -> None:
    made = await api.make(api.widget("a"))
    path = f"{api.widgets}/a"
    changed = {**made, "spec": {**made["spec"], "size": 2}}
    first = await api.put(path, changed)
    assert first.code == 200
    stale = await api.put(path, {**made, "spec": {**made["spec"], "size": 3}})
    assert (stale.code, stale.body["reason"]) == (409, "Conflict")
    assert "the object has been modified" in stale.message
    no_version = api.widget("a", size=4)
    missing = await api.put(path, no_version)
    assert missing.code == 422
    assert "must be specified for an update" in missing.message
    assert (await api.get(path)).body["spec"]["size"] == 2


async def test_many_updates_at_once_let_one_win(api: Any) -> None:
    made = await api.make(api.widget("a"))
    path = f"{api.widgets}/a"
    tries = [api.put(path, {**made, "spec": {**made["spec"], "size": n}}) for n in range(2, 8) if n != 7]
    codes = sorted(reply.code for reply in await asyncio.gather(*tries))
    assert codes == [200, 409, 409, 409, 409]


async def test_generation_follows_spec_only(api: Any) -> None:
    await api.make(api.widget("a"))
    path = f"{api.widgets}/a"
    labelled = await api.merge(path, {"metadata": {"labels": {"x": "y"}}})
    assert labelled.body["metadata"]["generation"] == 1
    status = await api.merge(f"{path}/status", {"status": {"state": "up"}})
    assert status.body["metadata"]["generation"] == 1
    resized = await api.merge(path, {"spec": {"size": 2}})
    assert resized.body["metadata"]["generation"] == 2


async def test_status_is_written_apart(api: Any) -> None:
    made = await api.make(api.widget("a"))
    path = f"{api.widgets}/a"
    main = await api.merge(path, {"spec": {"size": 2}, "status": {"state": "forged"}})
    assert "status" not in main.body
    fresh = (await api.get(path)).body
    body = {**fresh, "spec": {"size": 9}, "metadata": {**fresh["metadata"], "labels": {"no": "no"}}}
    status = await api.put(f"{path}/status", {**body, "status": {"state": "up"}})
    assert status.code == 200
    assert status.body["spec"]["size"] == 2
    assert "labels" not in status.body["metadata"]
    assert status.body["status"] == {"state": "up"}
    assert status.body["metadata"]["uid"] == made["metadata"]["uid"]
    wrong = await api.merge(f"{path}/status", {"status": {"done": "many"}})
    assert wrong.code == 422
    assert 'status.done: Invalid value: "string": done in body must be of type integer: "string"' in wrong.message


async def test_identity_cannot_be_changed(api: Any) -> None:
    await api.make(api.widget("a"))
    path = f"{api.widgets}/a"
    renamed = await api.merge(path, {"metadata": {"name": "b"}})
    assert renamed.code == 400
    moved = await api.merge(path, {"metadata": {"namespace": "kube-system"}})
    assert moved.code == 400
    uid = await api.merge(path, {"metadata": {"uid": "other"}})
    assert uid.code == 422
    assert 'metadata.uid: Invalid value: "other": field is immutable' in uid.message
    replaced = await api.put(
        path, {**api.widget("a"), "metadata": {"name": "a", "uid": "other", "resourceVersion": "1"}}
    )
    assert replaced.code == 409
    assert "UID in precondition: other" in replaced.message


async def test_writing_the_same_changes_nothing(api: Any) -> None:
    made = await api.make(api.widget("a"))
    again = await api.put(f"{api.widgets}/a", made)
    patched = await api.merge(f"{api.widgets}/a", {"spec": {"size": 1}})
    assert again.body["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert patched.body == made


async def test_dry_run_stores_nothing(api: Any) -> None:
    created = await api.post(api.widgets, api.widget("a"), dryRun="All")
    assert created.code == 201
    assert created.body["spec"]["color"] == "red"
    assert (await api.get(f"{api.widgets}/a")).code == 404
    made = await api.make(api.widget("b"))
    patched = await api.merge(f"{api.widgets}/b", {"spec": {"size": 5}}, dryRun="All")
    assert patched.body["spec"]["size"] == 5
    applied = await api.apply(f"{api.widgets}/b", api.widget("b", label="abc"), dryRun="All", force="true")
    assert applied.body["spec"]["label"] == "abc"
    assert (await api.delete(f"{api.widgets}/b", dryRun="All")).code == 200
    assert (await api.get(f"{api.widgets}/b")).body == made
    wrong = await api.post(api.widgets, api.widget("c"), dryRun="Some")
    assert wrong.code == 422


async def test_delete_answers_with_what_was_deleted(api: Any) -> None:
    made = await api.make(api.widget("a"))
    other = await api.delete(f"{api.widgets}/a", {"preconditions": {"uid": "other"}})
    assert other.code == 409
    stale = await api.delete(f"{api.widgets}/a", {"preconditions": {"resourceVersion": "1"}})
    assert stale.code == 409
    reply = await api.delete(f"{api.widgets}/a", {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert reply.body["status"] == "Success"
    assert reply.body["details"]["uid"] == made["metadata"]["uid"]
    gone = await api.delete(f"{api.widgets}/a")
    assert (gone.code, gone.message) == (404, 'widgets.test.example.com "a" not found')


async def test_delete_collection_takes_what_is_selected(api: Any) -> None:
    for name, team in (("a", "x"), ("b", "y"), ("c", "x")):
        await api.make(api.widget(name, metadata={"labels": {"team": team}}))
    reply = await api.delete(api.widgets, labelSelector="team=x")
    assert sorted(item["metadata"]["name"] for item in reply.body["items"]) == ["a", "c"]
    left = (await api.get(api.widgets)).body["items"]
    assert [item["metadata"]["name"] for item in left] == ["b"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Upper", "a lowercase RFC 1123 subdomain must consist of"),
        ("under_score", "a lowercase RFC 1123 subdomain must consist of"),
        ("-dash", "a lowercase RFC 1123 subdomain must consist of"),
        ("x" * 254, "must be no more than 253 characters"),
        ("", "name or generateName is required"),
        ("аdmin", "a lowercase RFC 1123 subdomain must consist of"),
    ],
)
async def test_names_are_checked(api: Any, name: str, complaint: str) -> None:
    reply = await api.post(api.widgets, api.widget(name))
    assert reply.code == 422
    assert complaint in reply.message


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"labels": {"bad key": "x"}}, "metadata.labels"),
        ({"labels": {"a": "bad value"}}, "metadata.labels"),
        ({"annotations": {"a": "x" * 300_000}}, "metadata.annotations"),
        ({"finalizers": ["not/valid/name"]}, "metadata.finalizers"),
        ({"ownerReferences": [{"apiVersion": "v1", "kind": "", "name": "x", "uid": "1"}]}, "ownerReferences[0].kind"),
    ],
)
async def test_metadata_is_checked(api: Any, metadata: dict[str, Any], field: str) -> None:
    reply = await api.post(api.widgets, api.widget("a", metadata=metadata))
    assert reply.code == 422
    assert field in reply.message


async def test_wrong_types_in_metadata_cannot_be_decoded(api: Any) -> None:
    for metadata in ({"labels": {"a": 1}}, {"labels": "x"}, {"finalizers": [1]}, {"name": 5}):
        reply = await api.post(api.widgets, api.widget("a", metadata=metadata))
        assert (reply.code, reply.body["reason"]) == (400, "BadRequest"), metadata


async def test_kind_and_version_must_fit_the_path(api: Any) -> None:
    reply = await api.post(api.widgets, {**api.widget("a"), "kind": "Gadget"})
    assert reply.code == 422
    assert reply.message == 'Gadget.test.example.com "a" is invalid: kind: Invalid value: "Gadget": must be Widget'
    for change in ({"apiVersion": "v1"}, {"kind": 3}):
        reply = await api.post(api.widgets, {**api.widget("a"), **change})
        assert reply.code == 400, change
    reply = await api.post(api.widgets, api.widget("a", metadata={"namespace": "other"}))
    assert "does not match the namespace sent on the request" in reply.message


async def test_namespaces_hold_and_take_their_content(api: Any) -> None:
    missing = await api.post(api.test("widgets", "nowhere"), api.widget("a"))
    assert (missing.code, missing.message) == (404, 'namespaces "nowhere" not found')
    team = await api.make_namespace("team")
    assert (await api.get(f"/api/v1/namespaces/{team}")).body["status"] == {"phase": "Active"}
    held = api.widget("held", metadata={"finalizers": ["test.example.com/hold"]})
    await api.make(held, team)
    await api.make(api.config_map("free"), team)
    deleted = await api.delete(f"/api/v1/namespaces/{team}")
    assert deleted.body["status"]["phase"] == "Terminating"
    refused = await api.post(api.test("widgets", team), api.widget("late"))
    assert refused.code == 403
    assert refused.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    await api.gone(f"{api.core('configmaps', team)}/free")
    assert (await api.get(f"/api/v1/namespaces/{team}")).code == 200
    await api.merge(f"{api.test('widgets', team)}/held", {"metadata": {"finalizers": None}})
    await api.gone(f"/api/v1/namespaces/{team}", 20.0)
    assert (await api.delete("/api/v1/namespaces/default")).code == 403


async def test_secrets_encode_text_and_keep_their_type(api: Any) -> None:
    path = api.core("secrets")
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": "value"}}
    made = await api.post(path, body)
    assert made.body["data"] == {"key": "dmFsdWU="}
    assert made.body["type"] == "Opaque"
    assert "stringData" not in made.body
    assert (await api.merge(f"{path}/s", {"type": "other"})).code == 422
    bad = await api.post(path, {**body, "metadata": {"name": "t"}, "data": {"other": "not base64!"}})
    assert bad.code == 400
    frozen = await api.merge(f"{path}/s", {"immutable": True})
    assert frozen.code == 200
    assert (await api.merge(f"{path}/s", {"data": {"key": "bmV3"}})).code == 422


async def test_built_in_kinds_refuse_wrong_types(api: Any) -> None:
    reply = await api.post(api.config_maps, {**api.config_map("a"), "data": {"n": 1}})
    assert reply.code == 400
    assert "ConfigMap" in reply.message
    assert "data" in reply.message


async def test_nulls_in_built_in_kinds_are_absent_fields(api: Any) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "creationTimestamp": None}, "data": None}
    made = await api.post(api.config_maps, {**body, "binaryData": {"x": None}}, fieldValidation="Strict")
    assert made.code == 201
    assert "data" not in made.body


async def test_leases_are_created_by_update(api: Any) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{api.namespace}/leases"
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "leader"},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.123456Z"},
    }
    made = await api.put(f"{path}/leader", lease)
    assert made.code == 201
    lease["metadata"] = made.body["metadata"]
    taken = await api.put(f"{path}/leader", {**lease, "spec": {**lease["spec"], "holderIdentity": "b"}})  # type: ignore[dict-item]
    assert taken.code == 200
    late = await api.put(f"{path}/leader", {**lease, "spec": {**lease["spec"], "holderIdentity": "c"}})  # type: ignore[dict-item]
    assert late.code == 409


# --- who gets in, and what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"a":',
        b"\xff\xfe",
        b'{"kind":"Widget","metadata":{"name":"\xff"}}',
        b'{"metadata":{"name":"\\ud800"}}',
        b'{"spec":{"size":NaN}}',
        b'{"apiVersion":"test.example.com/v1","kind":"Widget","metadata":[]}',
        b'{"apiVersion":"test.example.com/v1","kind":"Widget","metadata":{"name":"a"},"spec":' + b"[" * 100_000,
        b'{"spec":' + b'{"a":' * 500 + b"1" + b"}" * 501,
    ],
)
async def test_hostile_bodies_are_bad_requests(api: Any, body: bytes) -> None:
    for verb, path, media_type in (
        ("POST", api.widgets, "application/json"),
        ("POST", api.widgets, "application/yaml"),
        ("POST", api.config_maps, "application/vnd.kubernetes.protobuf"),
        ("PATCH", f"{api.widgets}/a", "application/apply-patch+yaml"),
    ):
        params = {"fieldManager": "x"} if verb == "PATCH" else {}
        reply = await api.call(verb, path, body, media_type, params=params)
        # kube-apiserver answers 500 to an apply that is no object of the kind, and to one that nests too deep.
        assert reply.code in (400, 422, 500), (media_type, reply.body)
    assert (await api.get("/readyz")).code == 200


async def test_deep_and_wide_objects(api: Any) -> None:
    deep: Any = "leaf"
    for _ in range(150):
        deep = {"a": deep}
    made = await api.make(api.widget("deep", free={"missing": 1, "deep": deep}))
    assert made["spec"]["free"]["deep"] == deep
    bushy = {"missing": 1, "d": {"b": {"c": {"d": [[deep] * 2] * 60}}}}
    deeper = await api.post(api.widgets, api.widget("deeper", free=bushy))
    assert deeper.code == 201


async def test_bodies_have_a_limit(api: Any) -> None:
    reply = await api.post(api.config_maps, api.config_map("big", x="y" * (3 * 1024 * 1024)))
    assert (reply.code, reply.body["reason"]) == (413, "RequestEntityTooLarge")
    reply = await api.post(api.config_maps, api.config_map("big", x="y" * (1024 * 1024 + 1)))
    assert reply.code == 422


async def test_yaml_that_means_harm(api: Any) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    for body in (bomb, "!!python/object/apply:os.system ['true']", "a: [", "? [a, b]\n: c"):
        reply = await api.call("POST", api.widgets, body.encode(), "application/yaml")
        assert reply.code == 400, body


async def test_paths_and_methods_that_are_not_served(api: Any) -> None:
    for path in ("/api/v2", "/apis/none.example.com", "/apis/test.example.com/v9", f"{api.widgets}/a/scale", "/x"):
        assert (await api.get(path)).code == 404, path
    assert (await api.call("PUT", api.widgets, {})).code == 400
    assert (await api.call("POST", "/apis/test.example.com/v1/widgets", api.widget("a"))).code == 404
    assert (await api.call("OPTIONS", api.widgets)).code == 405
    text = await api.call("POST", api.widgets, b"x", "text/plain")
    assert text.code == 415
    picky = await api.call("GET", api.widgets, headers={"Accept": "image/png"})
    assert picky.code == 406
