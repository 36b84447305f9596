"""`slipway get`: objects as the server's table, as YAML or JSON, as names, once or for ever."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from slipway_cli import session as sessions
from slipway_cli.errors import AnswerError, UsageError
from slipway_cli.follow import follow
from slipway_cli.options import choice_of
from slipway_cli.output import (
    Format,
    as_list,
    compile_template,
    parse_format,
    qualified_name,
    to_json,
    to_yaml,
    without_managed_fields,
)
from slipway_cli.resources import Discovered, Reference
from slipway_cli.session import Session
from slipway_cli.tables import TableStyle, column_widths, render, rows_of
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.resource import Json, version_of


@dataclass(frozen=True)
class _Request:
    """What is asked for."""

    format: Format
    all_namespaces: bool
    selector: str | None
    headers: bool
    ignore_not_found: bool

    @property
    def query(self) -> dict[str, str]:
        return {"labelSelector": self.selector} if self.selector else {}


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints what was asked for; 1 when a named object does not exist."""
    request = _Request(
        parse_format(arguments.output),
        arguments.all_namespaces,
        arguments.selector,
        not arguments.no_headers,
        arguments.ignore_not_found,
    )
    if request.format.kind == "jsonpath":
        compile_template(request.format.template)  # a wrong template is found before anything is asked

    async def command(session: Session) -> int:
        references = await session.references(arguments.what, names_required=False)
        if any(reference.names for reference in references):
            if request.all_namespaces:
                raise UsageError("-A lists; it does not go with a name", hint="-n NAMESPACE")
            if request.selector:
                raise UsageError("-l selects; it does not go with a name")
        if arguments.watch:
            return await _watch(session, references, request)
        if request.format.tabular:
            return await _print_tables(session, references, request)
        return await _print_objects(session, references, request)

    return sessions.run(choice_of(arguments), environment, command)


# --- tables -------------------------------------------------------------------------------------------------------


async def _print_tables(session: Session, references: list[Reference], request: _Request) -> int:
    printed, failures = False, []
    grouped = _by_kind(references)
    for kind, names in grouped:
        style = _style(kind, request, prefix=len(grouped) > 1)
        tables = []
        if names:
            for name in names:
                try:
                    tables.append(await session.table(kind, name))
                except NotFound as error:
                    failures.append(error)
        else:
            tables.append(await session.table(kind, all_namespaces=request.all_namespaces, query=request.query))
        if not any(table.get("rows") for table in tables):
            continue
        whole = {**tables[0], "rows": [row for table in tables for row in table.get("rows") or []]}
        headers, rows = rows_of(whole, style)
        if printed:
            print()
        print(render(headers if request.headers else [], rows))
        printed = True
    return _conclude(session, references, request, printed, failures)


def _by_kind(references: list[Reference]) -> list[tuple[Discovered, list[str]]]:
    grouped: dict[Discovered, list[str]] = {}
    for reference in references:
        grouped.setdefault(reference.kind, []).extend(reference.names)
    return list(grouped.items())


def _style(kind: Discovered, request: _Request, *, prefix: bool) -> TableStyle:
    return TableStyle(
        wide=request.format.kind == "wide",
        namespaces=request.all_namespaces and kind.resource.namespaced,
        prefix=f"{kind.label}/" if prefix else "",
    )


def _conclude(
    session: Session, references: list[Reference], request: _Request, printed: bool, failures: list[NotFound]
) -> int:
    if failures and not request.ignore_not_found:
        others = [failure.message for failure in failures[1:]]
        error = sessions.explain(failures[0], session.target)
        error.details = (*others, *error.details)
        raise error
    if not printed and not any(reference.names for reference in references):
        namespaced = any(reference.kind.resource.namespaced for reference in references)
        where = f" in namespace {session.target.namespace}" if namespaced and not request.all_namespaces else ""
        print(f"No resources found{where}.", file=sys.stderr)
    return 0


# --- objects ------------------------------------------------------------------------------------------------------


async def _print_objects(session: Session, references: list[Reference], request: _Request) -> int:
    found: list[tuple[Discovered, Json]] = []
    failures = []
    for reference in references:
        kind = reference.kind
        for name in reference.names:
            try:
                found.append((kind, await session.get(kind, name)))
            except NotFound as error:
                failures.append(error)
        if not reference.names:
            namespace = session.scope(kind.resource, all_namespaces=request.all_namespaces)
            items, _ = await session.client.list(kind.resource, namespace, request.selector)
            found += [(kind, item) for item in items]
    single = len(references) == 1 and len(references[0].names) == 1
    if found or not (single or failures):
        sys.stdout.write(_formatted(found, request.format, single=single))
    return _conclude(session, references, request, bool(found) or request.format.kind != "name", failures)


def _formatted(found: list[tuple[Discovered, Json]], format_: Format, *, single: bool) -> str:
    if format_.kind == "name":
        return "".join(f"{qualified_name(obj, kind.label)}\n" for kind, obj in found)
    objects = [without_managed_fields(obj) for _, obj in found]
    whole = objects[0] if single else as_list(objects)
    if format_.kind == "jsonpath":
        return compile_template(format_.template)(whole)
    return to_yaml(whole) if format_.kind == "yaml" else to_json(whole)


# --- watching -----------------------------------------------------------------------------------------------------


async def _watch(session: Session, references: list[Reference], request: _Request) -> int:
    if len(references) != 1 or len(references[0].names) > 1:
        raise UsageError("-w watches one type, or one object", hint="slipway get tj -w")
    kind = references[0].kind
    name = references[0].names[0] if references[0].names else None
    if request.format.tabular:
        return await _watch_rows(session, kind, name, request)
    namespace = session.scope(kind.resource, all_namespaces=request.all_namespaces)
    if name is not None:
        await session.get(kind, name)  # an object that does not exist is an error here as without -w
    template = compile_template(request.format.template) if request.format.kind == "jsonpath" else None
    async for change in follow(session.client, kind.resource, namespace, name=name, label_selector=request.selector):
        if change.type == "away":
            print(f"the API server is away ({change.message}); waiting", file=sys.stderr)
        elif change.obj is not None:
            if template is not None:
                print(template(without_managed_fields(change.obj)), flush=True)
            else:
                text = _formatted([(kind, change.obj)], request.format, single=True)
                print(("---\n" if request.format.kind == "yaml" else "") + text, end="", flush=True)
    return 0


async def _watch_rows(session: Session, kind: Discovered, name: str | None, request: _Request) -> int:
    """The table, then a row for every change: the row is asked of the server, so the columns stay the server's."""
    style = _style(kind, request, prefix=False)
    table = await session.table(kind, name, all_namespaces=request.all_namespaces, query=request.query)
    headers, rows = rows_of(table, style)
    widths = column_widths(headers, rows)
    if rows:
        print(render(headers if request.headers else [], rows, widths), flush=True)
    named = [(row.get("object") or {}) for row in table["rows"]]
    last = {_place(obj): row for obj, row in zip(named, rows, strict=True)}
    version = version_of(named[0]) if name is not None and named else str(table["version"])
    namespace = session.scope(kind.resource, all_namespaces=request.all_namespaces)
    header_shown = bool(rows)
    async for change in follow(
        session.client, kind.resource, namespace, name=name, label_selector=request.selector, resource_version=version
    ):
        if change.type == "away":
            print(f"the API server is away ({change.message}); waiting", file=sys.stderr)
            continue
        if change.obj is None:
            continue
        row = last.pop(_place(change.obj), None) if change.type == "deleted" else None
        if row is None:
            row = await _row(session, kind, change.obj, style)
        if row is None:
            continue
        if change.type == "state":
            last[_place(change.obj)] = row
        if not header_shown and request.headers:
            widths = column_widths(headers, [row])
            print(render(headers, [], widths))
            header_shown = True
        print(render([], [row], widths), flush=True)
    return 0


def _place(obj: Json) -> tuple[str, str]:
    metadata = obj.get("metadata") or {}
    return str(metadata.get("namespace") or ""), str(metadata.get("name") or "")


async def _row(session: Session, kind: Discovered, obj: Json, style: TableStyle) -> list[str] | None:
    """The object's row as the server makes it; None when it has gone meanwhile."""
    namespace, name = _place(obj)
    here = Session(replace(session.target, namespace=namespace or session.target.namespace), session.client)
    try:
        rows = rows_of(await here.table(kind, name), style)[1]
    except NotFound:
        return None
    if not rows:
        raise AnswerError(f"the server gave no row for {kind.label}/{name}")
    return rows[0]
