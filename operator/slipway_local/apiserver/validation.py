"""Values against schemas, with kube-apiserver's messages (kube-openapi/pkg/validation, listtype/validation.go).

Validation on update is ratcheting: what was there before and did not change is not complained about (KEP-4008).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson

from slipway_local.apiserver import errors
from slipway_local.apiserver.errors import FieldError
from slipway_local.apiserver.schema import MISSING, Node

_DATE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")
_DURATION = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))*|0")
_INT32 = 2**31
# Where a schema names a format, its checker speaks of the formats of Go's types instead of JSON's types.
_GO_FORMATS = {"integer": "int64", "number": "float64"}


def _is_date_time(text: str) -> bool:
    if not _DATE_TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text[:19])
    except ValueError:
        return False
    return True


def _parses(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parse(text)
        except (ValueError, binascii.Error):
            return False
        return True

    return check


_FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": _is_date_time,
    "date": _parses(lambda text: datetime.strptime(text, "%Y-%m-%d")),
    "duration": lambda text: _DURATION.fullmatch(text) is not None,
    "byte": _parses(lambda text: base64.b64decode(text, validate=True)),
    "uuid": _parses(uuid.UUID),
    "ipv4": _parses(ipaddress.IPv4Address),
    "ipv6": _parses(ipaddress.IPv6Address),
    "cidr": _parses(lambda text: ipaddress.ip_network(text, strict=False)),
}


def json_type(value: Any) -> str:
    """The JSON Schema type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def validate(value: Any, node: Node, path: str, old: Any = MISSING) -> list[FieldError]:
    """Everything that is wrong with a value; `old` is what stood here before, if anything did."""
    found: list[FieldError] = []
    _validate(value, node, path, old, found)
    return found


def _validate(value: Any, node: Node, path: str, old: Any, found: list[FieldError]) -> None:
    if old is not MISSING and value == old:
        return
    if not _check_type(value, node, path, found) and not isinstance(value, float):
        return
    if value is None:
        return
    if node.enum is not None and not any(value == allowed and type(value) is type(allowed) for allowed in node.enum):
        found.append(errors.not_supported(path, value, node.enum))
    if isinstance(value, str):
        _check_string(value, node, path, found)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(value, node, path, found)
    elif isinstance(value, list):
        _check_list(value, node, path, old, found)
    elif isinstance(value, dict):
        _check_object(value, node, path, old, found)
    if node.all_of or node.any_of or node.one_of or node.not_:
        _check_junctors(value, node, path, found)


def _check_type(value: Any, node: Node, path: str, found: list[FieldError]) -> bool:
    actual = json_type(value)
    if value is None:
        if node.nullable or not (node.type or node.int_or_string):
            return True
        wanted = node.type or "integer,string"
    elif node.int_or_string:
        if actual in ("integer", "string"):
            return True
        wanted = "integer,string"
    else:
        wanted = node.type
        whole = isinstance(value, float) and value.is_integer()
        if not wanted or wanted == actual or (wanted == "number" and actual == "integer"):
            return True
        if wanted == "integer" and whole:
            return True
        if node.format and not isinstance(value, (str, list)):
            wanted, actual = node.format, _GO_FORMATS.get(actual, "")
    detail = f"{path} in body must be of type {wanted}: {orjson.dumps(actual).decode()}"
    found.append(errors.invalid_type(path, actual, detail))
    return False


def _check_string(value: str, node: Node, path: str, found: list[FieldError]) -> None:
    if node.max_length is not None and len(value) > node.max_length:
        found.append(errors.too_long(path, node.max_length))
    if node.min_length is not None and len(value) < node.min_length:
        found.append(errors.invalid(path, value, f"{path} in body should be at least {node.min_length} chars long"))
    if node.pattern is not None and not node.pattern.search(value):
        found.append(errors.invalid(path, value, f"{path} in body should match '{node.pattern_text}'"))
    check = _FORMATS.get(node.format)
    if check is not None and not check(value):
        shown = orjson.dumps(value).decode()
        found.append(errors.invalid(path, value, f"{path} in body must be of type {node.format}: {shown}"))


def _check_number(value: int | float, node: Node, path: str, found: list[FieldError]) -> None:
    if node.type == "integer" and (
        (node.format == "int32" and not -_INT32 <= value < _INT32) or not float(value).is_integer()
    ):
        form = f"with format {node.format}" if node.format else "(default format)"
        found.append(errors.invalid("<nil>", "", f"Checked value must be of type integer {form} in {path}"))
    if node.maximum is not None and (value >= node.maximum if node.exclusive_maximum else value > node.maximum):
        bound = "less than" if node.exclusive_maximum else "less than or equal to"
        found.append(errors.invalid(path, value, f"{path} in body should be {bound} {_number(node.maximum)}"))
    if node.minimum is not None and (value <= node.minimum if node.exclusive_minimum else value < node.minimum):
        bound = "greater than" if node.exclusive_minimum else "greater than or equal to"
        found.append(errors.invalid(path, value, f"{path} in body should be {bound} {_number(node.minimum)}"))
    if node.multiple_of and value % node.multiple_of:
        shown = _number(node.multiple_of)
        found.append(errors.invalid(path, value, f"{path} in body should be a multiple of {shown}"))


def _number(value: int | float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_list(value: list[Any], node: Node, path: str, old: Any, found: list[FieldError]) -> None:
    if node.max_items is not None and len(value) > node.max_items:
        # Items beyond the limit are not looked at: one error says enough, ten thousand would not help.
        found.append(errors.too_many(path, len(value), node.max_items))
        return
    if node.min_items is not None and len(value) < node.min_items:
        found.append(errors.invalid(path, len(value), f"{path} in body should have at least {node.min_items} items"))
    if node.items is not None:
        before = correlate(node, old)
        for index, item in enumerate(value):
            _validate(item, node.items, f"{path}[{index}]", before(item), found)


def correlate(node: Node, old: Any) -> Callable[[Any], Any]:
    """For an item of a list, the item of the old list that it continues: by its keys in a list of type map."""
    if node.list_type != "map" or not isinstance(old, list):
        return lambda item: MISSING
    index = {list_key(node, item): item for item in old if isinstance(item, dict)}
    return lambda item: index.get(list_key(node, item), MISSING) if isinstance(item, dict) else MISSING


def list_key(node: Node, item: dict[str, Any]) -> tuple[Any, ...]:
    """The values of an item's keys, defaults included."""
    result = []
    for key in node.map_keys:
        value = item.get(key)
        if value is None and node.items is not None and key in node.items.properties:
            default = node.items.properties[key].default
            value = None if default is MISSING else default
        result.append(orjson.dumps(value) if isinstance(value, (dict, list)) else value)
    return tuple(result)


def _check_object(value: dict[str, Any], node: Node, path: str, old: Any, found: list[FieldError]) -> None:
    if node.max_properties is not None and len(value) > node.max_properties:
        found.append(errors.too_many(path, len(value), node.max_properties))
        return
    if node.min_properties is not None and len(value) < node.min_properties:
        detail = f"{path} in body should have at least {node.min_properties} properties"
        found.append(errors.invalid(path, len(value), detail))
    before = old if isinstance(old, dict) else {}
    prefix = f"{path}." if path else ""
    for name, child in value.items():
        schema = node.properties.get(name) or node.additional
        if schema is not None:
            _validate(child, schema, prefix + name, before.get(name, MISSING), found)
    found.extend(errors.required(prefix + name) for name in node.required if name not in value)


def _check_junctors(value: Any, node: Node, path: str, found: list[FieldError]) -> None:
    for branch in node.all_of:
        _validate(value, branch, path, MISSING, found)
    passed = [not validate(value, branch, path) for branch in node.any_of]
    if passed and not any(passed):
        found.append(errors.invalid(path, "", f"{path} in body must validate at least one schema (anyOf)"))
    passed = [not validate(value, branch, path) for branch in node.one_of]
    if passed and sum(passed) != 1:
        shown = f"Found {sum(passed)} valid alternatives" if sum(passed) else "Found none valid"
        detail = f"{path} in body must validate one and only one schema (oneOf). {shown}"
        found.append(errors.invalid(path, "", detail))
    if node.not_ is not None and not validate(value, node.not_, path):
        found.append(errors.invalid(path, "", f"{path} in body must not validate the schema (not)"))


def validate_lists(value: Any, node: Node, path: str) -> list[FieldError]:
    """Items of set and map lists that occur twice."""
    found: list[FieldError] = []
    if isinstance(value, list):
        if node.list_type != "atomic":
            _check_unique(value, node, path, found)
        if node.items is not None and node.items.type in ("object", "array"):
            for index, item in enumerate(value):
                found += validate_lists(item, node.items, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, child in value.items():
            if isinstance(child, (dict, list)):
                schema = node.properties.get(name) or node.additional
                if schema is not None:
                    found += validate_lists(child, schema, f"{path}.{name}" if path else name)
    return found


def _check_unique(value: list[Any], node: Node, path: str, found: list[FieldError]) -> None:
    seen = set()
    for index, item in enumerate(value):
        if node.list_type == "map":
            if not isinstance(item, dict):
                continue
            key: Any = list_key(node, item)
            shown: Any = {name: item.get(name) for name in node.map_keys}
        else:
            key, shown = orjson.dumps(item, option=orjson.OPT_SORT_KEYS), item
        if key in seen:
            found.append(errors.duplicate(f"{path}[{index}]", shown))
        seen.add(key)
