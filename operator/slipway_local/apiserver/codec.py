"""Request bodies to objects: JSON and YAML, duplicate keys found, hostile input refused before anything walks it.

What comes out is safe for everything behind it: a JSON object, nested at most MAX_DEPTH deep, with 64-bit integers
and valid UTF-8 only.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import orjson
import yaml

from slipway_local.apiserver import errors

MAX_BODY = 3 * 1024 * 1024
MAX_DEPTH = 200  # Python recursion is bounded; no manifest comes near it.


def decode(body: bytes, *, is_yaml: bool = False, find_duplicates: bool = False) -> tuple[Any, list[str]]:
    """The value that a body holds and the paths of keys that occur twice in one object (the last one counts).

    Raises ApiError 400 for anything that is not one document.
    """
    if not body.strip():
        raise errors.bad_request("the request body is empty")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as failure:
        if not is_yaml:
            raise errors.bad_request(f"couldn't get version/kind; json parse error: {failure}") from None
        return _decode_yaml(body)
    _check_depth(body, value)
    return value, _duplicates(body) if find_duplicates else []


def _check_depth(body: bytes, value: Any) -> None:
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise errors.bad_request(f"the object is nested more than {MAX_DEPTH} levels deep")


def depth(value: Any) -> int:
    """How deep objects and arrays are nested, without recursion."""
    level, current = 0, [value]
    while current:
        current = [
            child
            for item in current
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        level += 1
    return level


def _duplicates(body: bytes) -> list[str]:
    seen = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal seen
        result = dict(items)
        seen = seen or len(result) != len(items)
        return result

    try:
        json.loads(body, object_pairs_hook=pairs)
        return _duplicate_paths(body) if seen else []
    except (RecursionError, ValueError):
        raise errors.bad_request("couldn't get version/kind; json parse error: malformed document") from None


class _Pairs(list[tuple[str, Any]]):
    """An object with its duplicates kept."""


def _duplicate_paths(body: bytes) -> list[str]:
    found: list[str] = []

    def walk(value: Any, path: str) -> None:
        if isinstance(value, _Pairs):
            counts = Counter(key for key, _ in value)
            found.extend(f"{path}.{key}".lstrip(".") for key, count in counts.items() if count > 1)
            for key, child in value:
                walk(child, f"{path}.{key}")
        elif isinstance(value, list):
            for index, child in enumerate(value):
                walk(child, f"{path}[{index}]")

    walk(json.loads(body, object_pairs_hook=_Pairs), "")
    return list(dict.fromkeys(found))


_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_YAML):  # type: ignore[misc]
    """YAML as JSON would say it: no timestamps, keys are strings."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(str(key.value) for key, _ in node.value)
        self.duplicates.extend(key for key, count in counts.items() if count > 1)
        return {str(k): v for k, v in super().construct_mapping(node, deep=deep).items()}


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _survey(body: bytes) -> None:
    """Refuse, before anything is built, aliases (a few bytes of them can stand for gigabytes) and deep nesting."""
    level = 0
    for event in yaml.parse(body, Loader=_YAML):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted here")
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
            if level > MAX_DEPTH:
                raise yaml.YAMLError(f"the object is nested more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1


def _decode_yaml(body: bytes) -> tuple[Any, list[str]]:
    try:
        body.decode()
        _survey(body)
        loader = _Loader(body)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
        canonical = orjson.dumps(value)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as failure:
        raise errors.bad_request(f"error decoding YAML: {failure}") from None
    value = orjson.loads(canonical)
    _check_depth(canonical, value)
    return value, loader.duplicates


def same(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same, `true` and `1` told apart."""
    if left != right:
        return False
    return orjson.dumps(left, option=orjson.OPT_SORT_KEYS) == orjson.dumps(right, option=orjson.OPT_SORT_KEYS)


def copy(value: Any) -> Any:
    """A deep copy of a JSON value."""
    return orjson.loads(orjson.dumps(value))
