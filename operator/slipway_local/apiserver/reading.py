"""The verbs that read at once: get and list, with pages that all show the moment of the first one."""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from slipway_local.apiserver import errors
from slipway_local.apiserver.registry import Kind
from slipway_local.apiserver.rendering import Output, Renderer
from slipway_local.apiserver.selectors import EVERYTHING, Selector
from slipway_local.apiserver.storage import Store, Stored

_SNAPSHOT_SECONDS = 300.0
_MAX_SNAPSHOTS = 32
_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True)
class ListOptions:
    """What a list asks for."""

    selector: Selector = EVERYTHING
    limit: int = 0
    token: str = ""
    resource_version: str = ""
    match: str = ""


SnapshotKey = tuple[str, str, int]


class Snapshots:
    """Lists that clients are paging through. Objects are shared with the store, so one costs a pointer per object."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: OrderedDict[SnapshotKey, tuple[float, list[Stored]]] = OrderedDict()

    def keep(self, key: SnapshotKey, items: list[Stored]) -> None:
        """Remember a list for as long as somebody may page through it."""
        self._kept[key] = (self._clock() + _SNAPSHOT_SECONDS, items)
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_SNAPSHOTS or self._expired():
            self._kept.popitem(last=False)

    def get(self, key: SnapshotKey) -> list[Stored] | None:
        """A list that is still remembered."""
        until, items = self._kept.get(key, (0.0, None))
        return items if until > self._clock() else None

    def _expired(self) -> bool:
        until, _ = next(iter(self._kept.values()), (float("inf"), None))
        return until <= self._clock()


class Reader:
    """Reads committed objects."""

    def __init__(self, store: Store, renderer: Renderer, clock: Callable[[], float]) -> None:
        self._store = store
        self._renderer = renderer
        self._snapshots = Snapshots(clock)

    def get(self, kind: Kind, namespace: str, name: str, resource_version: str, output: Output) -> bytes:
        """One object. Raises ApiError 404."""
        self._check_version(resource_version)
        item = self._store.get(kind.resource, namespace, name)
        if item is None:
            raise errors.not_found(kind.plural, kind.group, name)
        return self._renderer.one(kind, item, output)

    def listing(self, kind: Kind, namespace: str | None, options: ListOptions, output: Output) -> bytes:
        """A list or a page of one."""
        version, items, start = self._source(kind, namespace, options)
        selector = options.selector
        if selector.only_name is not None:
            items = [item for item in items if item.name == selector.only_name]
        chosen: list[Stored] = []
        position = _position(items, start)
        while position < len(items) and not (options.limit and len(chosen) == options.limit):
            if kind.matches(items[position], selector):
                chosen.append(items[position])
            position += 1
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if position < len(items):
            last = items[position - 1]
            metadata["continue"] = _token(version, last.namespace, last.name)
            if not selector:
                metadata["remainingItemCount"] = len(items) - position
            if not options.token:
                self._snapshots.keep((kind.resource, namespace or "", version), items)
        return self._renderer.many(kind, chosen, metadata, output)

    def _source(
        self, kind: Kind, namespace: str | None, options: ListOptions
    ) -> tuple[int, list[Stored], tuple[str, str] | None]:
        current = self._store.version
        if not options.token:
            exact = self._check_version(options.resource_version)
            if options.match == "Exact" and exact != current:
                raise errors.expired("The resourceVersion for the provided list is too old.")
            return current, self._store.items(kind.resource, namespace), None
        if options.resource_version not in ("", "0"):
            raise errors.bad_request("specifying resource version is not allowed when using continue")
        version, start = _parse_token(options.token)
        if version < 0:  # The client chose to go on without consistency.
            return current, self._store.items(kind.resource, namespace), start
        items = self._snapshots.get((kind.resource, namespace or "", version))
        if items is None and version == current:
            items = self._store.items(kind.resource, namespace)
        if items is None:
            failure = errors.expired(_TOO_OLD)
            failure.continue_token = _token(-1, *start)
            raise failure
        return version, items, start

    def _check_version(self, text: str) -> int:
        version = parse_version(text)
        if version > self._store.version:
            raise errors.too_large_version(version, self._store.version)
        return version


def parse_version(text: str) -> int:
    """A resourceVersion parameter; 0 where none is given. Raises ApiError 400."""
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 19:
        raise errors.bad_request(f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax')
    return int(text)


def _token(version: int, namespace: str, name: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([version, namespace, name])).decode().rstrip("=")


def _parse_token(text: str) -> tuple[int, tuple[str, str]]:
    try:
        version, namespace, name = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if not (isinstance(version, int) and isinstance(namespace, str) and isinstance(name, str)):
            raise ValueError("malformed token")
    except (ValueError, TypeError, binascii.Error):
        raise errors.bad_request("continue key is not valid") from None
    return version, (namespace, name)


def _position(items: list[Stored], start: tuple[str, str] | None) -> int:
    if start is None:
        return 0
    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2
        if (items[middle].namespace, items[middle].name) <= start:
            low = middle + 1
        else:
            high = middle
    return low
