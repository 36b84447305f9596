"""Reads fields of raw objects, with the field's path in every error."""

from __future__ import annotations

from typing import Any

from slipway_local.ray_runner.errors import InvalidSpec


def join(path: str, name: str) -> str:
    """The path of a field of the object at `path`."""
    return f"{path}.{name}" if path else name


def only(obj: dict[str, Any], path: str, allowed: set[str]) -> None:
    """Raises InvalidSpec for a field outside `allowed` that is set to anything but an empty value."""
    for name, value in obj.items():
        if name not in allowed and value not in (None, "", [], {}, False):
            raise InvalidSpec(join(path, name), "is not supported when runs are started on one machine: remove it")


def mapping_at(obj: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    """The object in a field; {} when absent."""
    value = obj.get(name) or {}
    if not isinstance(value, dict):
        raise InvalidSpec(join(path, name), "must be an object")
    return value


def list_at(obj: dict[str, Any], name: str, path: str) -> list[dict[str, Any]]:
    """The objects in a list field; [] when absent."""
    value = obj.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidSpec(join(path, name), "must be a list of objects")
    return value


def text_at(obj: dict[str, Any], name: str, path: str) -> str:
    """The string in a field; "" when absent."""
    value = obj.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidSpec(join(path, name), "must be a string")
    return value


def whole_at(obj: dict[str, Any], name: str, path: str, *, default: int = 0, minimum: int = 0) -> int:
    """The whole number in a field; `default` when absent."""
    value = obj.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise InvalidSpec(join(path, name), f"must be a whole number, {minimum} or more")
    return value
