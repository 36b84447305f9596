"""Objects as `-o` asks for them: yaml, json, name, jsonpath=TEMPLATE. Pure; tables are in tables.py."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from slipway_cli.errors import CliError, UsageError

Json = dict[str, Any]

FORMATS = ("table", "wide", "yaml", "json", "name", "jsonpath=TEMPLATE")


@dataclass(frozen=True)
class Format:
    """A parsed `-o`."""

    kind: str  # table, wide, yaml, json, name or jsonpath
    template: str = ""

    @property
    def tabular(self) -> bool:
        """Whether the server's table is wanted rather than the objects."""
        return self.kind in ("table", "wide")


def parse_format(text: str | None) -> Format:
    """The format that `-o` names. Raises UsageError."""
    kind, has_template, template = (text or "table").partition("=")
    if kind == "jsonpath" and template:
        return Format(kind, template)
    if not has_template and kind in ("table", "wide", "yaml", "json", "name"):
        return Format(kind)
    raise UsageError(f"-o {text} is not an output format", hint=f"-o {'|'.join(FORMATS)}")


def without_managed_fields(obj: Json) -> Json:
    """The object without the bookkeeping of server-side apply, which nobody wants to read."""
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict) or "managedFields" not in metadata:
        return obj
    return {**obj, "metadata": {key: value for key, value in metadata.items() if key != "managedFields"}}


def as_list(objects: Iterable[Json]) -> Json:
    """Several objects as one v1 List, as kubectl prints them."""
    return {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": list(objects)}


def to_yaml(value: Any) -> str:
    """YAML, with multi-line strings readable, ending in a newline."""
    import yaml  # noqa: PLC0415 - only this format needs it

    class Dumper(yaml.SafeDumper):
        """A dumper of our own, so that the representer below changes nobody else's output."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True))


def to_json(value: Any) -> str:
    """Indented JSON, ending in a newline."""
    return json.dumps(value, indent=4, ensure_ascii=False) + "\n"


def qualified_name(obj: Json, resource_label: str) -> str:
    """`trainjob.slipway.dev/NAME`, where the label is the singular with its group."""
    return f"{resource_label}/{(obj.get('metadata') or {}).get('name', '')}"


# --- jsonpath -----------------------------------------------------------------------------------------------------


def compile_template(template: str) -> Callable[[Any], str]:
    """A function that fills in a kubectl JSONPath template: text, `{.path}`, `{"literal"}`.

    Raises UsageError for what is not supported (range, end, unions, recursive descent).
    """
    pieces = [_piece(text, braced) for text, braced in _split(template)]
    return lambda value: "".join(piece(value) for piece in pieces)


def _split(template: str) -> list[tuple[str, bool]]:
    """The template cut into (text, whether it stood in braces); a template without braces is one path."""
    if "{" not in template:
        return [(template if template[:1] in (".", "[", "$") else f".{template}", True)]
    parts: list[tuple[str, bool]] = []
    rest = template
    while rest:
        before, brace, after = rest.partition("{")
        if before:
            parts.append((before, False))
        if not brace:
            break
        inside, closed, rest = _until_brace(after)
        if not closed:
            raise UsageError(f"jsonpath {template!r}: a {{ is not closed")
        parts.append((inside.strip(), True))
    return parts


def _until_brace(text: str) -> tuple[str, bool, str]:
    quote = ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "}":
            return text[:index], True, text[index + 1 :]
    return text, False, ""


def _piece(text: str, braced: bool) -> Callable[[Any], str]:
    if not braced:
        return lambda _: text
    if text[:1] in ("'", '"'):
        try:
            literal = str(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            raise UsageError(f"jsonpath: {text} is not a string") from None
        return lambda _: literal
    path = text.removeprefix("$").removeprefix("@")
    if path in ("", "."):
        return _shown
    try:
        find = _compile_path(path)
    except ValueError as error:
        raise UsageError(
            f"jsonpath: {error}", hint='paths like {.status.state}, {.items[*].metadata.name}, {.a[?(@.b=="c")].d}'
        ) from None
    return lambda value: " ".join(_shown(found) for found in find(value))


def _compile_path(path: str) -> Callable[[Any], list[Any]]:
    try:
        from slipway_local.apiserver.jsonpath import compile_path  # noqa: PLC0415 - needs the extra [local]
    except ModuleNotFoundError as error:
        raise CliError(
            f"-o jsonpath needs the package {error.name}, which is not installed", hint="pip install 'slipway[local]'"
        ) from error
    return compile_path(path)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
