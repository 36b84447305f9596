"""Words to write the built-in kinds in: schema fields, table columns, readers of selectable fields."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from slipway_local.apiserver.registry import Reader
from slipway_local.apiserver.tables import NAME_COLUMN, Cells, Columns, age, column

Schema = dict[str, Any]


def text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def int32(description: str, **more: Any) -> Schema:
    return {"type": "integer", "format": "int32", "description": description, **more}


def flag(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def time(description: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": description, "nullable": True}


def map_of(value: Schema, description: str) -> Schema:
    return {"type": "object", "additionalProperties": value, "description": description}


def object_of(description: str, /, **properties: Schema) -> Schema:
    return {"type": "object", "description": description, "properties": properties}


def list_of(items: Schema, description: str, *keys: str, unique: bool = False) -> Schema:
    schema: Schema = {"type": "array", "items": items, "description": description}
    if keys:
        schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
    elif unique:
        schema["x-kubernetes-list-type"] = "set"
    return schema


ANY: Schema = {"x-kubernetes-preserve-unknown-fields": True}
QUANTITY: Schema = {"x-kubernetes-int-or-string": True}
CONDITION = object_of(
    "One condition.",
    type=text("What the condition is about."),
    status=text("True, False or Unknown."),
    reason=text("Why, in one word."),
    message=text("Why, for people."),
    lastTransitionTime=time("When the status last changed."),
    lastHeartbeatTime=time("When the condition was last confirmed."),
)
REFERENCE = object_of(
    "A reference to an object.",
    kind=text("Kind of the object."),
    namespace=text("Namespace of the object."),
    name=text("Name of the object."),
    uid=text("UID of the object."),
    apiVersion=text("API version of the object."),
    resourceVersion=text("Version of the object."),
    fieldPath=text("A part of the object, as a path."),
)


def named_columns(cells: Cells, *definitions: dict[str, Any]) -> Columns:
    def row(obj: dict[str, Any], now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], *cells(obj, now)]

    return Columns([NAME_COLUMN, *definitions], row)


def created(obj: dict[str, Any], now: datetime) -> str:
    return age(obj["metadata"].get("creationTimestamp"), now)


AGE = column("Age", description="Time since creation.")


def path_reader(*names: str) -> Reader:
    def read(obj: dict[str, Any]) -> str:
        value: Any = obj
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return "" if value is None else str(value)

    return read
