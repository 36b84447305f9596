"""The HTML report: one file that needs nothing else, for people to look at.

No script, no network, no fonts: CSS and SVG inline, light and dark. It shows the gates' verdict, the scores with their
intervals, the baseline beside them, the slices, how the examples are distributed, and the worst of them. Whatever comes
from data or models is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from slipway_api.gates import Verdict
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.report.page import render
from slipway_jobs.storage import Storage

__all__ = ["render", "write_report"]

FILE = "report.html"


def write_report(
    folder: Storage,
    document: Mapping[str, Any],
    scored: Mapping[str, Mapping[Literal["model", "baseline"], Sequence[ScoredExample]]],
    verdict: Verdict,
) -> None:
    """Write report.html. `document` is results.json; `scored`: suite -> the examples of model and baseline."""
    folder.write_bytes_atomic(FILE, render(document, scored, verdict).encode())
