"""Reads manifests: files, directories, standard input; many documents each; YAML or JSON. Never talks to a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from slipway_cli.errors import ManifestError

Json = dict[str, Any]
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Manifest:
    """One object and where it was written."""

    obj: Json
    source: str  # file, with the document's number and line where there are several

    @property
    def name(self) -> str:
        """metadata.name; "" where it is missing."""
        metadata = self.obj.get("metadata")
        return str(metadata.get("name") or "") if isinstance(metadata, dict) else ""

    def __str__(self) -> str:
        return f"{self.source}: {self.obj.get('kind')} {self.name}".rstrip()


def read_manifests(paths: Sequence[str], stdin: TextIO | None = None) -> list[Manifest]:
    """Every object of these files, directories (not their subdirectories) and `-` (standard input), in order.

    Raises ManifestError naming the file, the document and the line.
    """
    manifests = [manifest for path in paths for manifest in _read(path, stdin or sys.stdin)]
    if not manifests:
        raise ManifestError(
            f"no object in {', '.join(paths)}", hint="a manifest has apiVersion, kind and metadata.name"
        )
    return manifests


def _read(path: str, stdin: TextIO) -> Iterator[Manifest]:
    if path == "-":
        yield from parse(stdin.read(), "standard input")
        return
    place = Path(path)
    try:
        files = sorted(f for f in place.iterdir() if f.suffix in SUFFIXES) if place.is_dir() else [place]
        for file in files:
            yield from parse(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        raise ManifestError(f"{path}: there is no such file or directory") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error


def parse(text: str, source: str) -> list[Manifest]:
    """The objects of one text; a v1 List is taken apart. Raises ManifestError."""
    documents = _documents(text, source)
    several = len(documents) > 1
    manifests: list[Manifest] = []
    for number, (line, value) in enumerate(documents, start=1):
        where = f"{source}: document {number} (line {line})" if several else source
        if not isinstance(value, dict):
            raise ManifestError(f"{where}: an object is expected, not {_kind_of(value)}")
        if value.get("kind") == "List" and isinstance(value.get("items"), list):
            items = [(f"{where}: items[{i}]", item) for i, item in enumerate(value["items"])]
        else:
            items = [(where, value)]
        manifests += [Manifest(_checked(item, place), place) for place, item in items]
    return manifests


def _documents(text: str, source: str) -> list[tuple[int, Any]]:
    """(line, value) of each document that holds anything."""
    try:
        loader = _Loader(text)
        try:
            found = []
            while loader.check_node():
                node = loader.get_node()
                value = loader.construct_document(node) if node is not None else None
                if node is not None and value is not None:
                    found.append((node.start_mark.line + 1, value))
            return found
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ManifestError(f"{source}{place}: not YAML: {problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ManifestError(f"{source}: not YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """YAML as the API means it: a time stays text, a key stands once, and no alias can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_mark()
            raise yaml.composer.ComposerError(None, None, "aliases are not accepted here", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep=deep).items()}


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _checked(obj: Any, where: str) -> Json:
    if not isinstance(obj, dict):
        raise ManifestError(f"{where}: an object is expected, not {_kind_of(obj)}")
    for field in ("apiVersion", "kind"):
        if not isinstance(obj.get(field), str) or not obj[field]:
            raise ManifestError(f"{where}: {field} is missing", hint="apiVersion: slipway.dev/v1alpha1, kind: TrainJob")
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str) or not metadata["name"]:
        raise ManifestError(f"{where}: metadata.name is missing or not a string")
    return obj


def _kind_of(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{value!r:.40}"
