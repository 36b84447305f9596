"""Sets of field paths: what server-side apply remembers about who owns what.

A path element is written as FieldsV1 writes it (`f:name`, `k:{"type":"Ready"}`, `v:"x"`, `i:0`), so reading and
writing managedFields is a walk without parsing. Sets are never changed once they are shared: every operation returns a
new one (https://kubernetes.io/docs/reference/using-api/server-side-apply/).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

Path = tuple[str, ...]


class FieldSet:
    """A set of paths, as a trie."""

    __slots__ = ("children", "members")

    def __init__(self, members: set[str] | None = None, children: dict[str, FieldSet] | None = None) -> None:
        self.members: set[str] = members if members is not None else set()
        self.children: dict[str, FieldSet] = children if children is not None else {}

    def __bool__(self) -> bool:
        return bool(self.members or self.children)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FieldSet) and self.members == other.members and self.children == other.children

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"FieldSet({sorted(render(path) for path in self)})"

    def insert(self, path: Path) -> None:
        """Add a path in place; only for a set that nobody else holds yet."""
        node = self
        for element in path[:-1]:
            node = node.children.setdefault(element, FieldSet())
        node.members.add(path[-1])

    def __contains__(self, path: Path) -> bool:
        node: FieldSet | None = self
        for element in path[:-1]:
            node = node.children.get(element) if node else None
        return node is not None and path[-1] in node.members

    def __iter__(self) -> Iterator[Path]:
        return self._paths(())

    def _paths(self, prefix: Path) -> Iterator[Path]:
        # structured-merge-diff's order, which shows in the list of conflicts: what stands here, then what stands below.
        for element in sorted(self.members):
            yield (*prefix, element)
        for element in sorted(self.children):
            yield from self.children[element]._paths((*prefix, element))

    def below(self, element: str) -> FieldSet:
        """The paths under one element, without it."""
        return self.children.get(element, EMPTY)

    def union(self, other: FieldSet) -> FieldSet:
        """Paths in either."""
        if not other:
            return self
        if not self:
            return other
        children = dict(self.children)
        for element, theirs in other.children.items():
            ours = children.get(element)
            children[element] = ours.union(theirs) if ours else theirs
        return FieldSet(self.members | other.members, children)

    def intersection(self, other: FieldSet) -> FieldSet:
        """Paths in both."""
        children = {
            element: common
            for element, ours in self.children.items()
            if element in other.children and (common := ours.intersection(other.children[element]))
        }
        return FieldSet(self.members & other.members, children)

    def difference(self, other: FieldSet) -> FieldSet:
        """Paths in this set that are not in the other."""
        if not other:
            return self
        children = {}
        for element, ours in self.children.items():
            theirs = other.children.get(element)
            rest = ours.difference(theirs) if theirs else ours
            if rest:
                children[element] = rest
        return FieldSet(self.members - other.members, children)

    def without(self, roots: FieldSet) -> FieldSet:
        """Paths that are neither in `roots` nor under one of them."""
        children = {}
        for element, ours in self.children.items():
            if element in roots.members:
                continue
            theirs = roots.children.get(element)
            rest = ours.without(theirs) if theirs else ours
            if rest:
                children[element] = rest
        return FieldSet(self.members - roots.members, children)

    def to_v1(self) -> dict[str, Any]:
        """The FieldsV1 form."""
        result: dict[str, Any] = {}
        for element in sorted(self.members | self.children.keys()):
            child = self.children.get(element)
            if child is None:
                result[element] = {}
            elif element in self.members:
                result[element] = {".": {}, **child.to_v1()}
            else:
                result[element] = child.to_v1()
        return result

    @classmethod
    def from_v1(cls, fields: dict[str, Any]) -> FieldSet:
        """Read the FieldsV1 form. Raises ValueError where it is malformed."""
        result = cls()
        for element, below in fields.items():
            if element == ".":
                continue
            if element[:2] not in ("f:", "k:", "v:", "i:") or not isinstance(below, dict):
                raise ValueError(f"not a FieldsV1 path element: {element!r}")
            if not below or "." in below:
                result.members.add(element)
            child = cls.from_v1(below)
            if child:
                result.children[element] = child
        return result


EMPTY = FieldSet()


def of(*paths: Path) -> FieldSet:
    """A set of these paths."""
    result = FieldSet()
    for path in paths:
        result.insert(path)
    return result


def render(path: Path) -> str:
    """A path for people: `.spec.conditions[type="Ready"].status`."""
    return "".join(_render_element(element) for element in path)


def _render_element(element: str) -> str:
    kind, rest = element[:2], element[2:]
    if kind == "f:":
        return f".{rest}"
    if kind == "k:":
        keys = orjson.loads(rest)
        return "[" + ",".join(f"{key}={orjson.dumps(value).decode()}" for key, value in keys.items()) + "]"
    return f"[={rest}]" if kind == "v:" else f"[{rest}]"
