"""Server-side apply: ownership, conflicts, removal, lists by key, and what holds for any configuration."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_local.apiserver import managed, typed
from slipway_local.apiserver.errors import ApiError
from slipway_local.apiserver.fieldset import EMPTY, FieldSet, render
from slipway_local.apiserver.managed import Scope
from slipway_local.apiserver.metadata import METADATA
from slipway_local.apiserver.schema import Node, compile_schema

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def owners(obj: dict[str, Any]) -> dict[tuple[str, str, str], set[str]]:
    """(manager, operation, subresource) -> rendered paths."""
    return {
        (entry["manager"], entry["operation"], entry.get("subresource", "")): {
            render(path) for path in FieldSet.from_v1(entry["fieldsV1"])
        }
        for entry in obj["metadata"].get("managedFields", [])
    }


# --- what holds for any configuration -----------------------------------------------------------------------------

_NODE = compile_schema(
    {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer"},
                    "b": {"type": "string"},
                    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
                    "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                    "list": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["k"],
                        "items": {
                            "type": "object",
                            "properties": {"k": {"type": "string"}, "v": {"type": "integer"}, "w": {"type": "integer"}},
                        },
                    },
                    "atomic": {"type": "array", "items": {"type": "integer"}},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        },
    }
)
_NODE.properties |= {"apiVersion": Node(type="string"), "kind": Node(type="string"), "metadata": METADATA}
SCOPE = Scope(_NODE, "test.example.com/v1", "", EMPTY)

_KEYS = st.sampled_from("xyz")
_INTS = st.integers(0, 2)
_ITEM = st.fixed_dictionaries({"k": _KEYS}, optional={"v": _INTS, "w": _INTS})
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "a": _INTS,
        "b": st.sampled_from(["s", "t"]),
        "map": st.dictionaries(_KEYS, _INTS, min_size=1, max_size=3),
        "set": st.lists(_KEYS, unique=True, min_size=1, max_size=3),
        "list": st.lists(_ITEM, unique_by=lambda item: item["k"], min_size=1, max_size=3),
        "atomic": st.lists(_INTS, max_size=2),
        "free": st.dictionaries(_KEYS, st.dictionaries(_KEYS, _INTS, min_size=1, max_size=2), min_size=1, max_size=2),
    },
)


def config(spec: dict[str, Any]) -> dict[str, Any]:
    """An object with that spec, left out when empty."""
    return {
        "apiVersion": "test.example.com/v1",
        "kind": "X",
        "metadata": {"name": "x"},
        **({"spec": spec} if spec else {}),
    }


def applied(live: dict[str, Any], spec: dict[str, Any], manager: str, force: bool = True) -> dict[str, Any]:
    """The live object after an apply."""
    return managed.apply(live, config(spec), SCOPE, manager, "2026-01-01T00:00:00Z", force=force)


def says(obj: dict[str, Any], spec: dict[str, Any]) -> bool:
    """Whether the object holds everything that a spec says: laying the spec over it changes nothing."""
    laid = typed.merge(obj.get("spec", {}), spec, _NODE.properties["spec"])
    return typed.compare(obj.get("spec", {}), laid, _NODE.properties["spec"]) == typed.Comparison()


@given(SPECS, SPECS)
@settings(max_examples=60)
def test_one_applier_gets_exactly_what_it_says(first: dict[str, Any], second: dict[str, Any]) -> None:
    live = applied(applied({}, first, "one"), second, "one")
    assert live.get("spec", {}) == second
    assert applied(live, second, "one") == live


@given(SPECS, SPECS, SPECS)
@settings(max_examples=80)
def test_two_appliers_keep_what_they_own(first: dict[str, Any], other: dict[str, Any], later: dict[str, Any]) -> None:
    live = applied(applied({}, first, "one"), other, "two")
    assert says(live, other)
    owned = {key.manager: entry.fields for key, entry in managed.decode(live["metadata"].get("managedFields")).items()}
    present = typed.field_set(live, _NODE)
    for fields in owned.values():
        assert not fields.difference(present), "everything owned is there"
    live = applied(live, later, "one")
    assert says(live, later)
    taken = typed.compare(config(other), config(later), _NODE)
    if not (taken.added or taken.modified):
        assert says(live, other), "what two owns and one did not touch stays"


@given(SPECS, SPECS)
@settings(max_examples=60)
def test_without_force_a_conflict_changes_nothing_and_agreement_succeeds(
    first: dict[str, Any], other: dict[str, Any]
) -> None:
    live = applied({}, first, "one")
    before = orjson.dumps(live)
    clash = typed.field_set(config(first), _NODE).intersection(
        typed.compare(live, typed.merge(live, config(other), _NODE), _NODE).modified
    )
    try:
        result = applied(live, other, "two", force=False)
    except ApiError as failure:
        assert failure.code == 409
        assert clash
        assert orjson.dumps(live) == before
    else:
        assert not clash
        assert says(result, first)
        assert says(result, other)


@given(SPECS)
@settings(max_examples=60)
def test_fields_v1_reads_back(spec: dict[str, Any]) -> None:
    fields = typed.field_set(config(spec), _NODE)
    assert FieldSet.from_v1(fields.to_v1()) == fields
    assert FieldSet.from_v1(orjson.loads(orjson.dumps(fields.to_v1()))) == fields


@given(SPECS.filter(bool), SPECS)
@settings(max_examples=60)
def test_updates_move_ownership_to_whoever_changed_the_field(first: dict[str, Any], second: dict[str, Any]) -> None:
    live = applied({}, first, "one")
    changed = {**live, **config(second), "metadata": live["metadata"]}
    result = managed.track_update(live, changed, SCOPE, "editor", "2026-01-01T00:00:01Z")
    entries = {
        key.manager: entry.fields for key, entry in managed.decode(result["metadata"].get("managedFields")).items()
    }
    difference = typed.compare(live, changed, _NODE)
    assert entries.get("editor", EMPTY) == difference.added.union(difference.modified)
    assert not entries.get("one", EMPTY).intersection(
        difference.added.union(difference.modified).union(difference.removed)
    )
