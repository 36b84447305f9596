"""Windows as a Parquet table, a row for each signal of each window: what a flush to storage writes.

Flat columns (window, start, end, records, signal, size, missing) are for whoever looks with other tools; `sketch` holds
the JSON form, from which the window comes back whole.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slipway_jobs.drift.errors import SketchError
from slipway_jobs.drift.signals import EMBEDDING
from slipway_jobs.drift.summary import Summary
from slipway_jobs.drift.windows import Window

_SCHEMA = pa.schema(
    [
        ("window", pa.int64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("records", pa.int64()),
        ("signal", pa.string()),
        ("size", pa.int64()),
        ("missing", pa.int64()),
        ("sketch", pa.string()),
    ]
)


def to_parquet(windows: Iterable[Window]) -> bytes:
    """One file."""
    rows: list[dict[str, Any]] = []
    for window in windows:
        common = {
            "window": window.index,
            "start": window.start,
            "end": window.end,
            "records": window.summary.records,
        }
        state = window.summary.state()
        for name, sketch in window.summary.sketches.items():
            size = {"signal": name, "size": sketch.size, "missing": sketch.missing}
            rows.append({**common, **size, "sketch": json.dumps(state["sketches"][name])})
        kept = window.summary.embeddings
        size = {"signal": EMBEDDING, "size": kept.size, "missing": window.summary.records - kept.seen}
        rows.append({**common, **size, "sketch": json.dumps(state["embeddings"])})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def of_parquet(data: bytes) -> list[Window]:
    """The windows of a file, in its order. Raises SketchError for what is no such file."""
    try:
        rows = pq.read_table(io.BytesIO(data), schema=_SCHEMA).to_pylist()
        parts: dict[int, dict[str, Any]] = {}
        for row in rows:
            part = parts.setdefault(row["window"], {**row, "sketches": {}, "embeddings": None})
            if row["signal"] == EMBEDDING:
                part["embeddings"] = json.loads(row["sketch"])
            else:
                part["sketches"][row["signal"]] = json.loads(row["sketch"])
        return [Window(index, part["start"], part["end"], Summary.of_state(part)) for index, part in parts.items()]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise SketchError(f"not a table of windows: {error}") from error
