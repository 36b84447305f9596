"""Objects with their schema, as server-side apply sees them: their paths, how two differ, how they merge.

The semantics are those of sigs.k8s.io/structured-merge-diff: granular maps and lists of type set or map are walked,
everything else is one leaf. Values are never changed in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from slipway_local.apiserver.fieldset import FieldSet, Path
from slipway_local.apiserver.schema import FREE, MISSING, Node
from slipway_local.apiserver.validation import json_type

_GO_TYPES = {"string": "string", "boolean": "bool", "array": "[]interface {}", "object": "map[string]interface {}"}


class TypedError(Exception):
    """A value that does not fit the schema; `str()` names the path."""


def granular_map(value: Any, node: Node) -> bool:
    """Whether the value is walked as a map."""
    return isinstance(value, dict) and node.map_type != "atomic" and node.type in ("object", "")


def granular_list(value: Any, node: Node) -> bool:
    """Whether the value is walked as a list."""
    return isinstance(value, list) and node.list_type != "atomic" and node.items is not None


def below(node: Node, name: str) -> Node:
    """The schema of a map's field; a field that is not declared is a leaf or whatever it looks like."""
    return node.child(name) or FREE


def item_key(node: Node, item: Any) -> str:
    """The path element of a list's item. Raises TypedError for an item that lacks all keys."""
    if node.list_type == "set":
        return "v:" + orjson.dumps(item, option=orjson.OPT_SORT_KEYS).decode()
    if not isinstance(item, dict):
        raise TypedError("associative list with keys has an element that is not an object")
    keys = {}
    for name in node.map_keys:
        value = item.get(name, MISSING)
        if value is MISSING and node.items is not None and name in node.items.properties:
            value = node.items.properties[name].default
        if value is not MISSING:
            keys[name] = value
    if not keys:
        shown = " ".join(f'"{name}"' for name in node.map_keys)
        raise TypedError(
            f"associative list with keys has an element that omits all key fields [{shown}] "
            "(and doesn't have default values for any key fields)"
        )
    return "k:" + orjson.dumps(keys, option=orjson.OPT_SORT_KEYS).decode()


def check(value: Any, node: Node, path: str = "") -> None:
    """Raise TypedError where an applied value does not fit: an undeclared field, a wrong type, an item twice."""
    actual = json_type(value)
    if value is None:
        return
    if node.type and not node.int_or_string and actual != node.type:
        whole = node.type in ("number", "integer") and actual in ("number", "integer")
        if not whole:
            numeric = node.type in ("number", "integer")
            wanted, got = ("numeric (int or float)", _GO_TYPES[actual]) if numeric else (node.type, actual)
            raise TypedError(f"{path}: expected {wanted}, got {got}")
    if isinstance(value, dict):
        for name, child in value.items():
            schema = node.child(name)
            if schema is None:
                raise TypedError(f"{path}.{name}: field not declared in schema")
            check(child, schema, f"{path}.{name}")
    elif isinstance(value, list) and node.items is not None:
        _check_items(value, node, path)


def _check_items(value: list[Any], node: Node, path: str) -> None:
    seen = set()
    for index, item in enumerate(value):
        if node.list_type != "atomic":
            try:
                key = item_key(node, item)
            except TypedError as failure:
                raise TypedError(f"{path}: element {index}: {failure}") from None
            if key in seen:
                raise TypedError(f"{path}: duplicate entries for key {key[2:]}")
            seen.add(key)
        assert node.items is not None
        check(item, node.items, f"{path}[{index}]")


# --- the paths of a value -----------------------------------------------------------------------------------------


def field_set(value: Any, node: Node) -> FieldSet:
    """Every path that the value sets."""
    result = FieldSet()
    _collect(value, node, result)
    return result


def _collect(value: Any, node: Node, out: FieldSet) -> bool:
    """Collect the paths under a value into `out`; True where the value itself is a leaf."""
    if granular_map(value, node):
        for name, child in value.items():
            element = f"f:{name}"
            _collect_child(child, below(node, name), element, out)
            if child is None or child == {} or name not in node.properties:
                out.members.add(element)
        return False
    if granular_list(value, node):
        assert node.items is not None
        for item in value:
            element = item_key(node, item)
            _collect_child(item, node.items, element, out)
            out.members.add(element)
        return False
    # A null takes the form that the schema declares.
    return not (value is None and (node.type == "object" or (node.type == "array" and node.list_type != "atomic")))


def _collect_child(value: Any, node: Node, element: str, out: FieldSet) -> None:
    inside = FieldSet()
    if _collect(value, node, inside):
        out.members.add(element)
    elif inside:
        known = out.children.get(element)
        out.children[element] = known.union(inside) if known else inside


# --- differences --------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """Paths that differ between two values."""

    added: FieldSet = field(default_factory=FieldSet)
    removed: FieldSet = field(default_factory=FieldSet)
    modified: FieldSet = field(default_factory=FieldSet)

    def without(self, roots: FieldSet) -> Comparison:
        """The same, leaving out everything under these roots."""
        return Comparison(self.added.without(roots), self.removed.without(roots), self.modified.without(roots))


def compare(old: Any, new: Any, node: Node) -> Comparison:
    """How `new` differs from `old`."""
    result = Comparison()
    _compare(old, new, node, (), result)
    return result


def _compare(old: Any, new: Any, node: Node, path: Path, out: Comparison) -> None:
    if old is MISSING and path:
        _graft(out.added, path, _everything(new, node))
        return
    if new is MISSING:
        _graft(out.removed, path, _everything(old, node))
        return
    if old == new:
        return
    some = new if old is None else old
    if old or new:  # Two empty values of different kinds are one changed leaf.
        if granular_map(some, node) and _fits(old, dict) and _fits(new, dict):
            before, after = old or {}, new or {}
            for name in before.keys() | after.keys():
                child = below(node, name)
                _compare(before.get(name, MISSING), after.get(name, MISSING), child, (*path, f"f:{name}"), out)
            return
        if granular_list(some, node) and _fits(old, list) and _fits(new, list):
            _compare_items(old or [], new or [], node, path, out)
            return
    if path:
        out.modified.insert(path)


def _fits(value: Any, kind: type) -> bool:
    return value is None or isinstance(value, kind)


def _graft(target: FieldSet, path: Path, inside: FieldSet) -> None:
    """Add a path and everything below it."""
    target.insert(path)
    if inside:
        for element in path[:-1]:
            target = target.children[element]
        known = target.children.get(path[-1])
        target.children[path[-1]] = known.union(inside) if known else inside


def _everything(value: Any, node: Node) -> FieldSet:
    """Every path below a value, those of maps and items included."""
    result = FieldSet()
    if granular_map(value, node):
        for name, child in value.items():
            element = f"f:{name}"
            result.members.add(element)
            if isinstance(child, (dict, list)) and child:
                inside = _everything(child, below(node, name))
                if inside:
                    result.children[element] = inside
    elif granular_list(value, node):
        assert node.items is not None
        for element, items in _grouped(value, node).items():
            result.members.add(element)
            inside = _everything(items[0], node.items) if len(items) == 1 else FieldSet()
            if inside:
                result.children[element] = inside
    return result


def _compare_items(old: list[Any], new: list[Any], node: Node, path: Path, out: Comparison) -> None:
    before, after = _grouped(old, node), _grouped(new, node)
    assert node.items is not None
    for element in before.keys() | after.keys():
        left, right = before.get(element, []), after.get(element, [])
        if len(left) <= 1 and len(right) <= 1:
            _compare(left[0] if left else MISSING, right[0] if right else MISSING, node.items, (*path, element), out)
        elif left != right:
            # An item that stands there twice is one leaf.
            out.modified.insert((*path, element))


def _grouped(items: list[Any], node: Node) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(item_key(node, item), []).append(item)
    return groups


# --- merging and removing -----------------------------------------------------------------------------------------


def merge(live: Any, applied: Any, node: Node) -> Any:
    """The live value with the applied one laid over it; map and set lists are merged item by item."""
    if live is MISSING:
        return applied
    if applied is MISSING:
        return live
    if granular_map(live, node) and (applied is None or isinstance(applied, dict)):
        result = dict(live)
        for name, value in (applied or {}).items():
            result[name] = merge(live.get(name, MISSING), value, below(node, name))
        return result
    if granular_list(live, node) and (applied is None or isinstance(applied, list)):
        return _merge_items(live, applied or [], node)
    return applied


def _merge_items(live: list[Any], applied: list[Any], node: Node) -> list[Any]:
    # The applied order rules among applied items; items of others keep their place before what follows them.
    assert node.items is not None
    wanted = {item_key(node, item): item for item in applied}
    before: dict[str, Any] = {}
    for item in live:
        before.setdefault(item_key(node, item), item)
    result: list[Any] = []
    emitted: set[str] = set()

    def emit_until(stop: str | None) -> None:
        for key, item in wanted.items():
            if key == stop:
                return
            if key not in emitted:
                emitted.add(key)
                assert node.items is not None
                result.append(merge(before.get(key, MISSING), item, node.items))

    for item in live:
        key = item_key(node, item)
        if key not in wanted:
            result.append(item)
        elif key not in emitted:
            emit_until(key)
            emitted.add(key)
            result.append(merge(item, wanted[key], node.items))
    emit_until(None)
    return result


def remove(value: Any, gone: FieldSet, node: Node) -> Any:
    """The value without these paths."""
    if not gone:
        return value
    if granular_map(value, node):
        result = {}
        for name, child in value.items():
            element = f"f:{name}"
            if element in gone.members:
                continue
            deeper = gone.children.get(element)
            result[name] = remove(child, deeper, below(node, name)) if deeper else child
        return result
    if granular_list(value, node):
        assert node.items is not None
        kept = []
        for item in value:
            element = item_key(node, item)
            if element in gone.members:
                continue
            deeper = gone.children.get(element)
            kept.append(remove(item, deeper, node.items) if deeper else item)
        return kept
    return value


def with_named_fields(paths: FieldSet, node: Node) -> FieldSet:
    """The set with every declared field on the way to a member made a member itself."""
    members = set(paths.members)
    children = {}
    for element, deeper in paths.children.items():
        child = FREE
        if element.startswith("f:"):
            child = below(node, element[2:])
            if element[2:] in node.properties:
                members.add(element)
        elif element.startswith("k:") and node.items is not None:
            child = node.items
        children[element] = with_named_fields(deeper, child)
    return FieldSet(members, children)
