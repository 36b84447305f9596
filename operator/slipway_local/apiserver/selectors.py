"""Label and field selectors, parsed once per request
(https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from slipway_local.apiserver import errors

_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_TOKEN = re.compile(r"\s*(==|!=|=|!|\(|\)|,|<|>|[^\s=!(),<>]+)")


@dataclass(frozen=True)
class Requirement:
    """One condition on one key."""

    key: str
    operator: str  # in, notin, exists, !, gt, lt
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet it. Absent keys meet `notin` and `!`."""
        value = labels.get(self.key)
        if self.operator == "exists":
            return value is not None
        if self.operator == "!":
            return value is None
        if self.operator == "notin":
            return value is None or value not in self.values
        if value is None:
            return False
        if self.operator == "in":
            return value in self.values
        (bound,) = self.values
        if not value.lstrip("-").isdecimal():
            return False
        return int(value) > int(bound) if self.operator == "gt" else int(value) < int(bound)


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """`a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`. Raises ApiError 400 for anything else."""
    tokens = _tokens(text)
    found: list[Requirement] = []
    position = 0
    while position < len(tokens):
        requirement, position = _requirement(tokens, position, text)
        found.append(requirement)
        if position < len(tokens):
            if tokens[position] != "," or position + 1 == len(tokens):
                raise _bad(text, f"found '{tokens[position]}', expected: ',' or 'end of string'")
            position += 1
    return tuple(found)


def _bad(text: str, why: str) -> errors.ApiError:
    return errors.bad_request(f'unable to parse requirement: {why} in "{text}"')


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while text[position:].strip():
        found = _TOKEN.match(text, position)
        if found is None:
            raise _bad(text, "unexpected character")
        tokens.append(found.group(1))
        position = found.end()
    return tokens


def _requirement(tokens: list[str], at: int, text: str) -> tuple[Requirement, int]:
    def token(index: int) -> str:
        return tokens[index] if index < len(tokens) else ""

    if token(at) == "!":
        return Requirement(_key(token(at + 1), text), "!"), at + 2
    key = _key(token(at), text)
    operator = token(at + 1)
    if operator in ("", ","):
        return Requirement(key, "exists"), at + 1
    if operator in ("=", "==", "!="):
        value = token(at + 2)
        empty = value in ("", ",")
        kind = "notin" if operator == "!=" else "in"
        return Requirement(key, kind, frozenset([_value("" if empty else value, text)])), at + (2 if empty else 3)
    if operator in (">", "<"):
        bound = token(at + 2)
        if not bound.lstrip("-").isdecimal():
            raise _bad(text, f"for '{operator}' the value must be an integer")
        return Requirement(key, "gt" if operator == ">" else "lt", frozenset([bound])), at + 3
    if operator in ("in", "notin"):
        values, end = _values(tokens, at + 2, text)
        return Requirement(key, operator, values), end
    raise _bad(text, f"found '{operator}', expected: in, notin, =, ==, !=, gt, lt")


def _values(tokens: list[str], at: int, text: str) -> tuple[frozenset[str], int]:
    if at >= len(tokens) or tokens[at] != "(":
        raise _bad(text, "expected '('")
    try:
        end = tokens.index(")", at)
    except ValueError:
        raise _bad(text, "expected ')'") from None
    words = [t for t in tokens[at + 1 : end] if t != ","]
    return frozenset(_value(word, text) for word in words) or frozenset([""]), end + 1


def _key(word: str, text: str) -> str:
    if not _KEY.fullmatch(word):
        raise _bad(text, f"key: Invalid value: {word!r}: must be a qualified name")
    return word


def _value(word: str, text: str) -> str:
    if len(word) > 63 or not _VALUE.fullmatch(word):
        raise _bad(text, f"values: Invalid value: {word!r}: a valid label must be 63 characters or less")
    return word


@dataclass(frozen=True)
class FieldTerm:
    """One `field=value` or `field!=value`."""

    field: str
    value: str
    equal: bool


def parse_fields(text: str, supported: Callable[[str], bool]) -> tuple[FieldTerm, ...]:
    """`metadata.name=x,spec.y!=z`. Raises ApiError 400 for a field that the kind does not offer."""
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = re.fullmatch(r"([^=!]+)(!=|==|=)(.*)", part)
        if match is None:
            raise errors.bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        name, operator, value = match.groups()
        if not supported(name):
            raise errors.bad_request(f"field label not supported: {name}")
        found.append(FieldTerm(name, value, operator != "!="))
    return tuple(found)


@dataclass(frozen=True)
class Selector:
    """What a list or watch asked for."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[FieldTerm, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.labels or self.fields)

    def matches(self, labels: Mapping[str, str], fields: Mapping[str, str]) -> bool:
        """Whether an object with these labels and selectable fields is asked for."""
        return all(r.matches(labels) for r in self.labels) and all(
            (fields.get(term.field, "") == term.value) == term.equal for term in self.fields
        )

    @property
    def only_name(self) -> str | None:
        """The one name that can match, where the selector pins it."""
        return next((t.value for t in self.fields if t.field == "metadata.name" and t.equal), None)


EVERYTHING = Selector()
