"""Prints meta.k8s.io/v1 Tables the way kubectl does: the columns and the cells are the server's. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slipway_cli.terminal import one_line

Json = dict[str, Any]

_GAP = "   "


@dataclass(frozen=True)
class TableStyle:
    """Which columns to show."""

    wide: bool = False
    namespaces: bool = False
    prefix: str = ""  # put before every name, as "trainjob.slipway.dev/"
    headers: bool = True


def rows_of(table: Json, style: TableStyle) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of a Table, as text."""
    definitions = table.get("columnDefinitions") or []
    chosen = [index for index, column in enumerate(definitions) if style.wide or not column.get("priority")]
    headers = [str(definitions[index].get("name", "")).upper() for index in chosen]
    rows = []
    for row in table.get("rows") or []:
        cells = row.get("cells") or []
        shown = [cell_text(cells[index]) if index < len(cells) else "" for index in chosen]
        if shown and style.prefix:
            shown[0] = style.prefix + shown[0]
        if style.namespaces:
            shown.insert(0, str(((row.get("object") or {}).get("metadata") or {}).get("namespace") or ""))
        rows.append(shown)
    return (["NAMESPACE", *headers] if style.namespaces else headers), rows


def cell_text(value: Any) -> str:
    """One cell."""
    if value is None:
        return ""  # as kubectl does
    if isinstance(value, bool):
        return str(value).lower()
    return one_line(str(value))


def render(headers: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int] | None = None) -> str:
    """Aligned text, one line per row; `widths` are the least widths of the columns."""
    lines = [headers, *rows] if headers else list(rows)
    if not lines:
        return ""
    columns = max(len(line) for line in lines)
    least = [*(widths or ()), *([0] * columns)]
    width = [max(least[i], *(len(line[i]) if i < len(line) else 0 for line in lines)) for i in range(columns)]
    return "\n".join(_GAP.join(cell.ljust(width[i]) for i, cell in enumerate(line)).rstrip() for line in lines)


def column_widths(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The widths that `render` would use, to keep later rows of a watch in line."""
    lines = [headers, *rows]
    return [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(headers))]
