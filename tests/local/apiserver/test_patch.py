"""Merge patch, JSON patch and strategic merge patch: the pure functions, then the endpoints."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_local.apiserver.errors import ApiError
from slipway_local.apiserver.patch import json_patch, merge_patch, strategic_merge_patch
from slipway_local.apiserver.schema import compile_schema

_SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5)
JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


def has_null(value: Any) -> bool:
    """Whether a null stands anywhere in objects (a merge patch cannot write one)."""
    return value is None or (isinstance(value, dict) and any(has_null(child) for child in value.values()))


def difference(old: Any, new: Any) -> Any:
    """The merge patch that leads from old to new."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old or old[key] != value or type(old[key]) is not type(value):
            patch[key] = difference(old.get(key), value) if isinstance(old.get(key), dict) else value
    return patch


@given(OBJECTS, OBJECTS.filter(lambda o: not has_null(o)))
def test_merge_patch_reaches_any_object_without_nulls(old: Any, new: Any) -> None:
    assert merge_patch(old, difference(old, new)) == new


@given(OBJECTS, OBJECTS)
def test_merge_patch_is_idempotent_and_leaves_its_input_alone(target: Any, patch: Any) -> None:
    before = repr(target)
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once
    assert repr(target) == before


@pytest.mark.parametrize(
    ("target", "operations", "result"),
    [
        ({"a": 1}, [{"op": "add", "path": "/b", "value": 2}], {"a": 1, "b": 2}),
        ({"a": [1, 3]}, [{"op": "add", "path": "/a/1", "value": 2}], {"a": [1, 2, 3]}),
        ({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}], {"a": [1, 2]}),
        ({"a": 1, "b": 2}, [{"op": "remove", "path": "/a"}], {"b": 2}),
        ({"a/b": 1, "~": 2}, [{"op": "replace", "path": "/a~1b", "value": 3}], {"a/b": 3, "~": 2}),
        ({"~": 2}, [{"op": "test", "path": "/~0", "value": 2}], {"~": 2}),
        ({"a": {"x": 1}}, [{"op": "move", "from": "/a/x", "path": "/y"}], {"a": {}, "y": 1}),
        ({"a": {"x": 1}}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": {"x": 1}, "b": {"x": 1}}),
    ],
)
def test_json_patch(target: Any, operations: Any, result: Any) -> None:
    assert json_patch(target, operations) == result


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ({"op": "remove", "path": "/nope"}, 422),
        ({"op": "replace", "path": "/nope", "value": 1}, 422),
        ({"op": "test", "path": "/a", "value": True}, 422),
        ({"op": "add", "path": "/list/9", "value": 1}, 422),
        ({"op": "add", "path": "/a/deeper", "value": 1}, 422),
        ({"op": "move", "from": "/list", "path": "/list/0"}, 422),
        ({"op": "add", "path": "/x"}, 400),
        ({"op": "frob", "path": "/a"}, 400),
        ({"path": 3}, 400),
        ("text", 400),
    ],
)
def test_json_patches_that_do_not_apply(operation: Any, code: int) -> None:
    with pytest.raises(ApiError) as failure:
        json_patch({"a": 1, "list": [1]}, [operation])
    assert failure.value.code == code


def test_json_patch_cannot_be_made_to_grow_without_end() -> None:
    doubling = [{"op": "copy", "from": "", "path": f"/{n}"} for n in range(64)]
    with pytest.raises(ApiError) as failure:
        json_patch({"seed": "x" * 1000}, doubling)
    assert failure.value.code == 413


_NODE = compile_schema(
    {
        "type": "object",
        "properties": {
            "parts": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            },
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "atoms": {"type": "array", "items": {"type": "string"}},
            "data": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }
)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"data": {"a": "1", "b": "2"}}, {"data": {"a": None, "c": "3"}}, {"data": {"b": "2", "c": "3"}}),
        ({"data": {"a": "1"}}, {"data": {"$patch": "replace", "b": "2"}}, {"data": {"b": "2"}}),
        (
            {"parts": [{"name": "a", "x": 1}]},
            {"parts": [{"name": "a", "y": 2}]},
            {"parts": [{"name": "a", "x": 1, "y": 2}]},
        ),
        ({"parts": [{"name": "a"}]}, {"parts": [{"name": "b"}]}, {"parts": [{"name": "a"}, {"name": "b"}]}),
        (
            {"parts": [{"name": "a"}, {"name": "b"}]},
            {"parts": [{"name": "a", "$patch": "delete"}]},
            {"parts": [{"name": "b"}]},
        ),
        ({"parts": [{"name": "a"}]}, {"parts": [{"$patch": "replace"}, {"name": "z"}]}, {"parts": [{"name": "z"}]}),
        (
            {"parts": [{"name": "a"}, {"name": "b"}]},
            {"$setElementOrder/parts": [{"name": "b"}, {"name": "a"}], "parts": [{"name": "a", "n": 1}]},
            {"parts": [{"name": "b"}, {"name": "a", "n": 1}]},
        ),
        ({"tags": ["a"]}, {"tags": ["b", "a"]}, {"tags": ["a", "b"]}),
        ({"tags": ["a", "b"]}, {"$deleteFromPrimitiveList/tags": ["a"]}, {"tags": ["b"]}),
        ({"atoms": ["a"]}, {"atoms": ["b"]}, {"atoms": ["b"]}),
        (
            {"data": {"a": "1"}, "tags": []},
            {"$retainKeys": ["data"], "data": {"b": "2"}},
            {"data": {"a": "1", "b": "2"}},
        ),
    ],
)
def test_strategic_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert strategic_merge_patch(target, patch, _NODE) == result
