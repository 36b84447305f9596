"""Structural schemas, compiled once: what prunes, defaults, validates and merges an object.

`compile_schema` turns openAPIV3Schema into a tree of `Node`; the other modules walk that tree and never look at the
raw schema again. Follows apiextensions-apiserver's structural schemas (pruning/algorithm.go, defaulting/algorithm.go).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from slipway_local.apiserver.codec import copy


class SchemaError(Exception):
    """A schema that cannot be served; `path` points into it."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


@dataclass(frozen=True)
class RuleSource:
    """One entry of x-kubernetes-validations, as written."""

    rule: str
    message: str
    message_expression: str
    field_path: str
    reason: str


MISSING: Any = object()


@dataclass(eq=False)
class Node:
    """One place of a schema."""

    type: str = ""
    properties: dict[str, Node] = field(default_factory=dict)
    additional: Node | None = None
    items: Node | None = None
    required: tuple[str, ...] = ()
    default: Any = MISSING
    nullable: bool = False
    preserve: bool = False  # x-kubernetes-preserve-unknown-fields
    embedded: bool = False  # x-kubernetes-embedded-resource
    int_or_string: bool = False
    list_type: str = "atomic"
    map_keys: tuple[str, ...] = ()
    map_type: str = "granular"
    enum: list[Any] | None = None
    pattern: re.Pattern[str] | None = None
    pattern_text: str = ""
    format: str = ""
    minimum: float | int | None = None
    exclusive_minimum: bool = False
    maximum: float | int | None = None
    exclusive_maximum: bool = False
    multiple_of: float | int | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    min_properties: int | None = None
    max_properties: int | None = None
    all_of: tuple[Node, ...] = ()
    any_of: tuple[Node, ...] = ()
    one_of: tuple[Node, ...] = ()
    not_: Node | None = None
    rules: tuple[RuleSource, ...] = ()
    raw: dict[str, Any] = field(default_factory=dict)
    # Derived: whether anything at or below this place defaults, or carries rules.
    has_defaults: bool = False
    has_rules: bool = False
    cel_special: bool = False  # CEL sees another value than JSON here or below: a timestamp, an escaped name

    def child(self, name: str) -> Node | None:
        """The schema of a field of this object; None where the field is not declared."""
        found = self.properties.get(name)
        if found is not None:
            return found
        if self.additional is not None:
            return self.additional
        return FREE if self.free else None

    @property
    def free(self) -> bool:
        """Whether undeclared fields are kept."""
        return self.preserve or not self.type


FREE = Node(preserve=True, nullable=True)  # Anything at all: lists are atomic, maps granular, as SMD deduces them.

_COPIED = {
    "nullable": "nullable",
    "format": "format",
    "minimum": "minimum",
    "exclusiveMinimum": "exclusive_minimum",
    "maximum": "maximum",
    "exclusiveMaximum": "exclusive_maximum",
    "multipleOf": "multiple_of",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_items",
    "maxItems": "max_items",
    "minProperties": "min_properties",
    "maxProperties": "max_properties",
    "enum": "enum",
    "x-kubernetes-embedded-resource": "embedded",
    "x-kubernetes-int-or-string": "int_or_string",
    "x-kubernetes-list-type": "list_type",
    "x-kubernetes-map-type": "map_type",
}
_TYPES = ("object", "array", "string", "integer", "number", "boolean")


def compile_schema(raw: dict[str, Any], path: str = "", *, structural: bool = True) -> Node:
    """Compile one schema and everything below it. Raises SchemaError with the place that is wrong.

    `structural=False` is for the branches of allOf and its kin, which restrict values and declare nothing.
    """
    if not isinstance(raw, dict):
        raise SchemaError(path, "must be an object")
    node = Node(raw=raw, type=raw.get("type", ""))
    for key, attribute in _COPIED.items():
        if key in raw:
            setattr(node, attribute, raw[key])
    node.preserve = bool(raw.get("x-kubernetes-preserve-unknown-fields"))
    node.map_keys = tuple(raw.get("x-kubernetes-list-map-keys", ()))
    node.required = tuple(raw.get("required", ()))
    node.default = raw.get("default", MISSING)
    _check_type(node, path, structural)
    _compile_pattern(node, path)
    _compile_children(node, raw, path, structural)
    node.rules = tuple(_rule(entry, f"{path}.x-kubernetes-validations[{i}]") for i, entry in enumerate(_rules(raw)))
    below = [*node.properties.values(), *filter(None, (node.additional, node.items))]
    node.has_defaults = any(child.default is not MISSING or child.has_defaults for child in below)
    node.has_rules = bool(node.rules) or any(child.has_rules for child in below)
    return node


def _rules(raw: dict[str, Any]) -> list[dict[str, Any]]:
    return raw.get("x-kubernetes-validations") or []


def _check_type(node: Node, path: str, structural: bool) -> None:
    if node.type and node.type not in _TYPES:
        raise SchemaError(f"{path}.type", f"Unsupported value: {node.type!r}: supported values: {', '.join(_TYPES)}")
    if structural and not node.type and not node.preserve and not node.int_or_string:
        raise SchemaError(f"{path}.type", "Required value: must not be empty for specified object fields")
    if node.list_type not in ("atomic", "set", "map"):
        raise SchemaError(f"{path}.x-kubernetes-list-type", f"Unsupported value: {node.list_type!r}")
    if (node.list_type == "map") != bool(node.map_keys):
        raise SchemaError(f"{path}.x-kubernetes-list-map-keys", "must be set if and only if the list type is map")


def _compile_pattern(node: Node, path: str) -> None:
    text = node.raw.get("pattern")
    if not text:
        return
    try:
        # RE2 and Python agree on what CRDs use, but for \z; $ must not match before a last newline.
        node.pattern = re.compile(re.sub(r"(?<!\\)\$$", r"\\Z", text).replace(r"\z", r"\Z"))
    except re.error as failure:
        raise SchemaError(f"{path}.pattern", f"must be a valid regular expression, but isn't: {failure}") from None
    node.pattern_text = text


def _compile_children(node: Node, raw: dict[str, Any], path: str, structural: bool) -> None:
    node.properties = {
        name: compile_schema(child, f"{path}.properties[{name}]", structural=structural)
        for name, child in (raw.get("properties") or {}).items()
    }
    additional = raw.get("additionalProperties")
    if isinstance(additional, dict):
        node.additional = compile_schema(additional, f"{path}.additionalProperties", structural=structural)
    elif additional is True:
        node.preserve = True
    if "items" in raw:
        node.items = compile_schema(raw["items"], f"{path}.items", structural=structural)
    elif structural and node.type == "array":
        raise SchemaError(f"{path}.items", "Required value: must be specified")
    if node.properties and node.additional:
        raise SchemaError(f"{path}.additionalProperties", "Forbidden: additionalProperties and properties exclude each")
    for key, attribute in (("allOf", "all_of"), ("anyOf", "any_of"), ("oneOf", "one_of")):
        branches = [compile_schema(b, f"{path}.{key}[{i}]", structural=False) for i, b in enumerate(raw.get(key, ()))]
        setattr(node, attribute, tuple(branches))
    if "not" in raw:
        node.not_ = compile_schema(raw["not"], f"{path}.not", structural=False)


def _rule(entry: dict[str, Any], path: str) -> RuleSource:
    if not entry.get("rule"):
        raise SchemaError(f"{path}.rule", "Required value: rule is not specified")
    if entry.get("optionalOldSelf"):
        raise SchemaError(f"{path}.optionalOldSelf", "Unsupported value: true: this API server does not serve it")
    return RuleSource(
        rule=entry["rule"],
        message=entry.get("message", "").strip(),
        message_expression=entry.get("messageExpression", ""),
        field_path=entry.get("fieldPath", ""),
        reason=entry.get("reason", ""),
    )


# --- pruning ------------------------------------------------------------------------------------------------------

EMBEDDED_FIELDS = ("apiVersion", "kind", "metadata")


def prune(value: Any, node: Node, path: str, unknown: list[str]) -> None:
    """Drop, in place, fields that the schema does not declare; their paths go to `unknown`."""
    if isinstance(value, dict):
        _prune_object(value, node, path, unknown)
    elif isinstance(value, list) and node.items is not None:
        for index, item in enumerate(value):
            prune(item, node.items, f"{path}[{index}]", unknown)


def _prune_object(value: dict[str, Any], node: Node, path: str, unknown: list[str]) -> None:
    dropped = []
    for name, child in value.items():
        schema = node.properties.get(name) or node.additional
        if schema is not None:
            if isinstance(child, (dict, list)):
                prune(child, schema, f"{path}.{name}" if path else name, unknown)
        elif not node.free and not (node.embedded and name in EMBEDDED_FIELDS):
            dropped.append(name)
    for name in dropped:
        del value[name]
        unknown.append(f"{path}.{name}" if path else name)


def prune_nulls(value: Any, node: Node) -> None:
    """Drop, in place, fields that are null where the schema admits no null: to the API server they are not there."""
    if isinstance(value, dict):
        for name, child in list(value.items()):
            schema = node.properties.get(name) or node.additional
            if schema is None:
                continue
            if child is None and not schema.nullable:
                del value[name]
            else:
                prune_nulls(child, schema)
    elif isinstance(value, list) and node.items is not None:
        for item in value:
            prune_nulls(item, node.items)


# --- defaulting ---------------------------------------------------------------------------------------------------


def apply_defaults(value: Any, node: Node) -> None:
    """Fill in defaults, in place. A null where the schema has a default and admits no null is replaced by it."""
    if not node.has_defaults:
        return
    if isinstance(value, dict):
        for name, child in node.properties.items():
            current = value.get(name, MISSING)
            unset = current is MISSING or (current is None and not child.nullable)
            if unset and child.default is not MISSING:
                value[name] = current = copy(child.default)
            if child.has_defaults and current is not MISSING:
                apply_defaults(current, child)
        if node.additional is not None and node.additional.has_defaults:
            for name, child_value in value.items():
                if name not in node.properties:
                    apply_defaults(child_value, node.additional)
    elif isinstance(value, list) and node.items is not None:
        for item in value:
            apply_defaults(item, node.items)
