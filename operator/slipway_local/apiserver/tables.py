"""meta.k8s.io/v1 Tables: the columns that `kubectl get` prints.

A custom resource prints what its CRD says; a built-in kind prints what kubectl's users know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from slipway_local.apiserver.jsonpath import compile_path

Cells = Callable[[dict[str, Any], datetime], list[Any]]

NAME_COLUMN = {
    "name": "Name",
    "type": "string",
    "format": "name",
    "description": "Name of the object, unique within its namespace.",
    "priority": 0,
}


@dataclass(frozen=True)
class Columns:
    """Column definitions and the function that fills a row."""

    definitions: list[dict[str, Any]]
    cells: Cells


def column(name: str, type_: str = "string", description: str = "", priority: int = 0) -> dict[str, Any]:
    """A column definition."""
    return {"name": name, "type": type_, "format": "", "description": description, "priority": priority}


def human_duration(seconds: float) -> str:
    """An age as kubectl writes it: 5s, 3m20s, 4h5m, 2d3h, 1y20d (apimachinery/pkg/util/duration)."""
    if seconds < -1:
        return "<invalid>"
    if seconds < 0:
        return "0s"
    s = int(seconds)
    minutes, hours, days = s // 60, s // 3600, s // 86400
    if s < 120:
        return f"{s}s"
    if minutes < 10:
        return f"{minutes}m{s % 60}s" if s % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 730:
        return f"{days}d"
    years, rest = divmod(days, 365)
    return f"{years}y{rest}d" if years < 8 and rest else f"{years}y"


def age(timestamp: Any, now: datetime) -> str:
    """The time since an RFC 3339 timestamp."""
    if not isinstance(timestamp, str) or not timestamp:
        return "<unknown>"
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return "<invalid>"
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return human_duration((now - moment).total_seconds())


_AGE = {
    "name": "Age",
    "type": "date",
    "jsonPath": ".metadata.creationTimestamp",
    "description": "Time since creation.",
}


def custom_columns(printer_columns: list[dict[str, Any]]) -> Columns:
    """The columns that a CRD declares; just the age when it declares none. Raises ValueError for a bad path."""
    declared = printer_columns or [_AGE]
    readers = [(c["type"], compile_path(c["jsonPath"])) for c in declared]
    definitions = [NAME_COLUMN] + [
        {
            "name": c["name"],
            "type": c["type"],
            "format": c.get("format", ""),
            "description": c.get("description")
            or f"Custom resource definition column (in JSONPath format): {c['jsonPath']}",
            "priority": c.get("priority", 0),
        }
        for c in declared
    ]

    def cells(obj: dict[str, Any], now: datetime) -> list[Any]:
        row: list[Any] = [obj["metadata"]["name"]]
        for type_, find in readers:
            found = find(obj)
            row.append(_cell(type_, found[0], now) if found else None)
        return row

    return Columns(definitions, cells)


def _cell(type_: str, value: Any, now: datetime) -> Any:
    if value is None:
        return None
    if type_ == "string":
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return str(value).lower()
        return orjson.dumps(value).decode()
    if type_ == "date":
        return age(value, now)
    if type_ == "boolean":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if type_ == "integer" else float(value)


def row(obj: dict[str, Any], columns: Columns, include: str, now: datetime) -> dict[str, Any]:
    """One row; `include` is the request's includeObject: None, Metadata or Object."""
    result: dict[str, Any] = {"cells": columns.cells(obj, now)}
    if include == "Object":
        result["object"] = obj
    else:
        result["object"] = None if include == "None" else partial(obj)
    return result


def partial(obj: dict[str, Any]) -> dict[str, Any]:
    """The object's metadata alone."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def table(rows: list[dict[str, Any]], columns: Columns | None, metadata: dict[str, Any]) -> dict[str, Any]:
    """A Table; without `columns` it has no headers, as later events of a watch."""
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns.definitions if columns else None,
        "rows": rows,
    }
