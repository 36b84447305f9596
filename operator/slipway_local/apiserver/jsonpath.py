"""The JSONPath of printer columns and selectable fields: `.a.b[0].c`, `['x']`, `[*]`, `[?(@.type=="Ready")]`.

The subset that kube-apiserver admits in a CRD, without unions, slices and recursive descent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

Step = Callable[[Any], Iterator[Any]]

_FIELD = re.compile(r"\.((?:\\.|[^.\[\]\\])+)")
_QUOTED = re.compile(r"\[\s*(?:'((?:\\.|[^'\\])*)'|\"((?:\\.|[^\"\\])*)\")\s*\]")
_INDEX = re.compile(r"\[\s*(-?\d+|\*)\s*\]")
_FILTER = re.compile(r"\[\?\(\s*@((?:\.(?:\\.|[^.=!<>\s\\])+)+)\s*(==|!=|>=|<=|>|<)\s*(.+?)\s*\)\]")


def compile_path(text: str) -> Callable[[Any], list[Any]]:
    """A function from an object to the values at that path. Raises ValueError for a path that is not of the subset."""
    steps, position = [], 0
    while position < len(text):
        step, position = _step(text, position)
        steps.append(step)

    def find(value: Any) -> list[Any]:
        current = [value]
        for step in steps:
            current = [found for item in current for found in step(item)]
        return current

    return find


def _step(text: str, at: int) -> tuple[Step, int]:
    if match := _FIELD.match(text, at):
        return _field(re.sub(r"\\(.)", r"\1", match.group(1))), match.end()
    if match := _FILTER.match(text, at):
        return _filter(match.group(1), match.group(2), match.group(3)), match.end()
    if match := _QUOTED.match(text, at):
        return _field(re.sub(r"\\(.)", r"\1", match.group(1) or match.group(2) or "")), match.end()
    if match := _INDEX.match(text, at):
        return _index(match.group(1)), match.end()
    raise ValueError(f"unrecognized JSONPath {text!r} at {text[at:]!r}")


def _field(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if name == "*" and isinstance(value, (dict, list)):
            yield from value.values() if isinstance(value, dict) else value
        elif isinstance(value, dict) and name in value:
            yield value[name]

    return step


def _index(token: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if token == "*":
            if isinstance(value, (dict, list)):
                yield from value.values() if isinstance(value, dict) else value
        elif isinstance(value, list) and -len(value) <= int(token) < len(value):
            yield value[int(token)]

    return step


def _filter(path: str, operator: str, literal: str) -> Step:
    find = compile_path(path)
    wanted: Any = literal[1:-1] if literal[:1] in "'\"" else orjson.loads(literal)
    compare: dict[str, Callable[[Any], bool]] = {
        "==": lambda v: v == wanted,
        "!=": lambda v: v != wanted,
        ">": lambda v: v > wanted,
        "<": lambda v: v < wanted,
        ">=": lambda v: v >= wanted,
        "<=": lambda v: v <= wanted,
    }
    test = compare[operator]

    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            for item in value:
                found = find(item)
                if found and (operator in ("==", "!=") or type(found[0]) is type(wanted)) and test(found[0]):
                    yield item

    return step
