"""How objects are answered: whole, as a Table or as metadata only, in JSON or YAML, by the request's Accept header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from slipway_local.apiserver import errors, tables
from slipway_local.apiserver.registry import Kind
from slipway_local.apiserver.storage import Stored

JSON, YAML = "application/json", "application/yaml"


@dataclass(frozen=True)
class Output:
    """What the client asked for."""

    shape: str = "object"  # object, table or partial
    yaml: bool = False
    include: str = "Metadata"  # a table's includeObject

    @property
    def content_type(self) -> str:
        """The answer's media type."""
        return YAML if self.yaml else JSON


def negotiate(accept: str, include: str = "") -> Output:
    """Pick the first acceptable form. Raises ApiError 406 where there is none."""
    for media_range in accept.split(",") if accept.strip() else ["*/*"]:
        media_type, *parameters = (part.strip() for part in media_range.split(";"))
        options = dict(p.split("=", 1) for p in parameters if "=" in p)
        if media_type not in (JSON, YAML, "application/*", "*/*"):
            continue
        shape = options.get("as", "")
        if shape:
            if options.get("g") != "meta.k8s.io" or options.get("v") != "v1":
                continue
            if shape == "Table":
                return Output("table", media_type == YAML, include or "Metadata")
            if shape in ("PartialObjectMetadata", "PartialObjectMetadataList"):
                return Output("partial", media_type == YAML)
            continue
        return Output("object", media_type == YAML)
    raise errors.not_acceptable([JSON, YAML])


class Renderer:
    """Turns stored objects into answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def one(self, kind: Kind, item: Stored, output: Output) -> bytes:
        """One object."""
        if output.shape == "object":
            return kind.raw(item)
        return self.loaded(kind, kind.load(item), output)

    def loaded(self, kind: Kind, obj: dict[str, Any], output: Output) -> bytes:
        """One object that is at hand already."""
        if output.shape == "table":
            row = tables.row(obj, kind.columns, output.include, self._now())
            version = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
            return orjson.dumps(tables.table([row], kind.columns, version))
        return orjson.dumps(tables.partial(obj) if output.shape == "partial" else obj)

    def many(self, kind: Kind, items: list[Stored], metadata: dict[str, Any], output: Output) -> bytes:
        """A list."""
        if output.shape == "table":
            now = self._now()
            rows = [tables.row(kind.load(item), kind.columns, output.include, now) for item in items]
            return orjson.dumps(tables.table(rows, kind.columns, metadata))
        if output.shape == "partial":
            partial = [tables.partial(item.load()) for item in items]
            head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
            return orjson.dumps({**head, "items": partial})
        head = {"apiVersion": kind.api_version, "kind": kind.list_kind, "metadata": metadata}
        return orjson.dumps(head)[:-1] + b',"items":[' + b",".join(kind.raw(item) for item in items) + b"]}"

    def event(self, type_: str, kind: Kind, item: Stored, output: Output, *, headers: bool) -> bytes:
        """One line of a watch."""
        if output.shape == "table":
            obj = kind.load(item)
            row = tables.row(obj, kind.columns, output.include, self._now())
            version = {"resourceVersion": obj["metadata"]["resourceVersion"]}
            body = orjson.dumps(tables.table([row], kind.columns if headers else None, version))
        elif output.shape == "partial":
            body = orjson.dumps(tables.partial(item.load()))
        else:
            body = kind.raw(item)
        return b'{"type":"' + type_.encode() + b'","object":' + body + b"}\n"

    def bookmark(self, kind: Kind, version: int, output: Output, *, initial_end: bool = False) -> bytes:
        """A line that says how far the watch has come."""
        metadata: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
        if initial_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        if output.shape == "table":
            obj = tables.table([], None, {"resourceVersion": str(version)})
        elif output.shape == "partial":
            obj = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        else:
            obj = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}
        return orjson.dumps({"type": "BOOKMARK", "object": obj}) + b"\n"
