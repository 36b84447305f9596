"""The pieces that every description is made of: sections, pairs, tables of conditions and attempts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from slipway_cli.durations import ago, parse_time, short_duration
from slipway_cli.tables import cell_text, render

Json = dict[str, Any]
Pairs = Iterable[tuple[str, Any]]

_LABEL_WIDTH = 18


def section(title: str, body: str) -> str:
    """A titled block; nothing where its body is empty."""
    return f"{title}:\n{body}" if body else ""


def pairs(found: Pairs, indent: int = 0) -> str:
    """Aligned `label: value` lines; empty values are left out."""
    width = _LABEL_WIDTH - indent
    return "".join(
        f"{' ' * indent}{label + ':':<{width}}{value}\n" for label, value in found if value is not None and value != ""
    )


def conditions(found: Sequence[Json], now: datetime) -> str:
    """The conditions as a table."""
    rows = [
        [
            f"  {condition.get('type')}",
            str(condition.get("status")),
            ago(condition.get("lastTransitionTime"), now),
            str(condition.get("reason")),
            cell_text(condition.get("message") or ""),
        ]
        for condition in found
    ]
    return render(["  TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"], rows) + "\n" if rows else ""


def attempts(records: Sequence[Json], spec: Json, now: datetime) -> str:
    """The attempts as a table."""
    rows = []
    for record in records:
        start, end = parse_time(str(record.get("startTime"))), parse_time(str(record.get("endTime")))
        took = short_duration(((end or now) - start).total_seconds()) if start else ""
        resumed = record.get("resumedFromStep")
        rows.append(
            [
                f"  {record.get('number')}",
                str(record.get("outcome") or "(alive)"),
                took,
                "" if resumed is None else str(resumed),
                cell_text(record.get("message") or ""),
            ]
        )
    return render(["  NUMBER", "OUTCOME", "TOOK", "FROM STEP", "MESSAGE"], rows) + "\n" if rows else ""


def usage(status: Json) -> Pairs:
    """What the attempts have used, and where things are kept."""
    usage = status.get("usage") or {}
    if usage.get("workerSeconds") is not None:
        yield "Workers", f"{short_duration(usage['workerSeconds'])} of worker time"
    if usage.get("gpuSeconds"):
        yield "GPUs", f"{short_duration(usage['gpuSeconds'])} of GPU time"
    if usage.get("cost"):
        yield "Cost", f"{usage['cost']} {usage.get('currency', '')}"
    if usage.get("energyKwh"):
        yield "Energy", f"{usage['energyKwh']} kWh"
    yield "Pool", status.get("pool")
    yield "Storage", status.get("storage")


def flat(mapping: Json | None) -> str | None:
    """A mapping on one line."""
    return ", ".join(f"{key}={_scalar(value)}" for key, value in (mapping or {}).items()) or None


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def count(value: Any) -> str:
    """A whole number with separators."""
    return f"{value:,}" if isinstance(value, int) else str(value)
