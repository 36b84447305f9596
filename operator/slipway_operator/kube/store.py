"""The cache of one resource: what the API server said last, by key, with indexes.

Objects in it are shared and read-only: whoever wants to change one copies it first. The store holds what it is given;
it never talks to the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from slipway_operator.kube.resource import Json, Key, Resource, at_least, key_of, uid_of, version_of

Index = Callable[[Json], Iterable[str]]
Projection = Callable[[Json], Json]
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Change(NamedTuple):
    """What happened to one object. SYNC: a full list showed it unchanged (`old` is `new`)."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "SYNC"]
    old: Json | None
    new: Json | None

    @property
    def obj(self) -> Json:
        """The newest state known; for DELETED the last one."""
        obj = self.new if self.new is not None else self.old
        assert obj is not None
        return obj


Changes = list[Change]


def keep(*paths: str) -> Projection:
    """A projection to these dotted paths, with all of metadata but managedFields, apiVersion and kind.

    What kubectl applied last is dropped too: it is a second copy of the whole object, in an annotation.
    """
    routes = [tuple(path.split(".")) for path in paths]

    def project(obj: Json) -> Json:
        kept: Json = {name: obj[name] for name in ("apiVersion", "kind", "metadata") if name in obj}
        (kept.get("metadata", {}).get("annotations") or {}).pop(_LAST_APPLIED, None)
        for route in routes:
            _copy(obj, kept, route)
        return kept

    return project


def _copy(source: Json, target: Json, route: tuple[str, ...]) -> None:
    for name in route[:-1]:
        source = source.get(name) or {}
        if not isinstance(source, dict):
            return
    if route[-1] in source:
        for name in route[:-1]:
            target = target.setdefault(name, {})
        target[route[-1]] = source[route[-1]]


class Store:
    """Objects of one resource by key. Not thread-safe: one event loop."""

    def __init__(
        self, resource: Resource, indexes: Mapping[str, Index] | None = None, project: Projection | None = None
    ) -> None:
        """`indexes` name functions from an object to the values it is found under; `project` drops what nobody reads
        (metadata's name, namespace, uid and resourceVersion must stay).
        """
        self.resource = resource
        self._project = project
        self._indexes = dict(indexes or {})
        self._objects: dict[Key, Json] = {}
        self._indexed: dict[str, dict[str, set[Key]]] = {name: {} for name in self._indexes}
        self.resource_version = ""
        """The version up to which this cache has seen everything; "" before the first list."""

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> Json | None:
        """The object, or None."""
        return self._objects.get(key)

    def list(self, namespace: str | None = None) -> Iterator[Json]:
        """The objects (of one namespace), in no order that means anything."""
        snapshot = tuple(self._objects.items())
        return (obj for key, obj in snapshot if namespace is None or key.namespace == namespace)

    def keys(self) -> tuple[Key, ...]:
        """The keys of all objects."""
        return tuple(self._objects)

    def by_index(self, index: str, value: str) -> tuple[Json, ...]:
        """The objects that this index has under this value, by key. Raises KeyError for an unknown index."""
        return tuple(self._objects[key] for key in sorted(self._indexed[index].get(value, ())))

    def prepare(self, obj: Json) -> Json:
        """The object as the store will hold it: without managedFields, projected. May change `obj`."""
        obj.get("metadata", {}).pop("managedFields", None)
        if self._project is None:
            return obj
        projected = self._project(obj)
        if (key_of(projected), uid_of(projected), version_of(projected)) != (key_of(obj), uid_of(obj), version_of(obj)):
            raise ValueError(f"the projection of {self.resource.label} drops the object's identity")
        return projected

    def replace(self, objects: Iterable[Json], resource_version: str) -> Changes:
        """Takes a full list of prepared objects as the truth; what changed, and SYNC for what did not.

        An object with another UID than the cached one of that name was deleted and created again: DELETED, then ADDED.
        """
        listed = {key_of(obj): obj for obj in objects}
        changes = [self._remove(key) for key in self.keys() if key not in listed]
        for key, obj in listed.items():
            changes += self._put(key, obj)
        self.resource_version = resource_version
        return changes

    def upsert(self, obj: Json) -> Changes:
        """Takes a prepared object from an ADDED or MODIFIED event; nothing changes for a repeated or an older one."""
        key = key_of(obj)
        old = self._objects.get(key)
        self.advance(version_of(obj))
        if old is not None and at_least(version_of(old), version_of(obj)):
            return []
        return self._put(key, obj)

    def remove(self, obj: Json) -> Changes:
        """Takes a DELETED event; nothing changes when it tells of an earlier object of that name."""
        key = key_of(obj)
        old = self._objects.get(key)
        self.advance(version_of(obj))
        if old is None or (uid_of(old) != uid_of(obj) and at_least(version_of(old), version_of(obj))):
            return []
        return [self._remove(key)]

    def advance(self, resource_version: str) -> None:
        """Notes that everything up to this version has been seen (a bookmark says so); never goes back."""
        if resource_version and at_least(self.resource_version, resource_version) is not True:
            self.resource_version = resource_version

    def _put(self, key: Key, obj: Json) -> Changes:
        old = self._objects.get(key)
        if old is not None and version_of(old) == version_of(obj) and uid_of(old) == uid_of(obj):
            return [Change("SYNC", old, old)]
        # Before anything is changed: an index function that chokes on the object must not leave half of it behind.
        found = {name: tuple(index(obj)) for name, index in self._indexes.items()}
        changes: Changes = []
        if old is not None and uid_of(old) != uid_of(obj):
            changes.append(self._remove(key))
            old = None
        if old is not None:
            self._unindex(key, old)
        self._objects[key] = obj
        for name, values in found.items():
            for value in values:
                self._indexed[name].setdefault(value, set()).add(key)
        changes.append(Change("ADDED" if old is None else "MODIFIED", old, obj))
        return changes

    def _remove(self, key: Key) -> Change:
        old = self._objects.pop(key)
        self._unindex(key, old)
        return Change("DELETED", old, None)

    def _unindex(self, key: Key, obj: Json) -> None:
        for name, index in self._indexes.items():
            values = self._indexed[name]
            for value in index(obj):
                keys = values.get(value)
                if keys is not None:
                    keys.discard(key)
                    if not keys:
                        del values[value]
