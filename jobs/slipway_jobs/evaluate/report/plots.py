"""Plots as SVG text: bars with intervals, histograms, and how sure a model is against how often it is right.

Sizes are in CSS pixels of a fixed view box that scales with the page. Colours are classes of the page's style, so that
light and dark are one matter. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 640
_ROW = 26
_LABEL = 190  # room for the labels of bars
_VALUE = 90  # and for their figures


@dataclass(frozen=True)
class Bar:
    """One bar, its interval where there is one, and the baseline's mark where there is one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    baseline: float | None = None


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from zero. Values that are no numbers get a row without a bar."""
    ends = [end for bar in rows for end in (bar.value, bar.low, bar.high, bar.baseline) if end is not None]
    finite = [end for end in ends if math.isfinite(end)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    span = (high - low) or 1.0
    room = _WIDTH - _LABEL - _VALUE

    def x(value: float) -> float:
        return _LABEL + room * (min(max(value, low), high) - low) / span

    parts = [_text(0, 16, title, "title")]
    for index, bar in enumerate(rows):
        top = 28 + index * _ROW
        parts.append(_text(_LABEL - 8, top + 14, _shortened(bar.label), "label end"))
        if not math.isfinite(bar.value):
            parts.append(_text(_LABEL, top + 14, "no value", "figure"))
            continue
        left, right = sorted((x(0.0), x(bar.value)))
        parts.append(_rect(left, top + 3, max(1.0, right - left), _ROW - 10, "bar"))
        if bar.low is not None and bar.high is not None and math.isfinite(bar.low) and math.isfinite(bar.high):
            middle = top + 3 + (_ROW - 10) / 2
            parts.append(_line(x(bar.low), middle, x(bar.high), middle, "interval"))
            parts += [_line(x(end), middle - 4, x(end), middle + 4, "interval") for end in (bar.low, bar.high)]
        if bar.baseline is not None and math.isfinite(bar.baseline):
            parts.append(_line(x(bar.baseline), top + 1, x(bar.baseline), top + _ROW - 5, "baseline"))
        parts.append(_text(_LABEL + room + 8, top + 14, figure(bar.value), "figure"))
    return _svg(28 + len(rows) * _ROW + 4, parts, title)


def histogram(title: str, values: Sequence[float], *, unit: str, bins: int = 24) -> str:
    """How often each range of values occurs. Values that are no numbers are left out."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in finite:
        counts[min(bins - 1, int((value - low) / width))] += 1
    height, base, step = 120, 150, _WIDTH / bins
    parts = [_text(0, 16, title, "title"), _line(0, base, _WIDTH, base, "axis")]
    for index, count in enumerate(counts):
        tall = height * count / max(counts)
        parts.append(_rect(index * step + 1, base - tall, step - 2, tall, "bar"))
    parts.append(_text(0, base + 16, f"{figure(low)} {unit}", "figure"))
    parts.append(_text(_WIDTH, base + 16, f"{figure(high)} {unit}", "figure end"))
    parts.append(_text(_WIDTH, 16, f"{len(finite)} examples", "figure end"))
    return _svg(base + 24, parts, title)


@dataclass(frozen=True)
class Bin:
    """Examples whose confidence lies in one range."""

    confidence: float  # mean
    accuracy: float
    count: int


def reliability(title: str, bins: Sequence[Bin]) -> str:
    """Accuracy over confidence: on the diagonal a model is as sure as it is right. Larger dots hold more examples."""
    side, left, top = 240, 60, 28
    most = max((one.count for one in bins), default=1)
    parts = [
        _text(0, 16, title, "title"),
        _rect(left, top, side, side, "frame"),
        _line(left, top + side, left + side, top, "interval"),
        _text(left, top + side + 18, "0", "figure"),
        _text(left + side, top + side + 18, "1 confidence", "figure end"),
        _text(left - 6, top + 10, "1", "figure end"),
        _text(left - 6, top + side, "0 accuracy", "figure end"),
    ]
    for one in bins:
        x, y = left + side * one.confidence, top + side * (1 - one.accuracy)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 7 * math.sqrt(one.count / most):.1f}" class="bar"/>')
    return _svg(top + side + 28, parts, title)


def figure(value: float) -> str:
    """A number for people."""
    if not math.isfinite(value):
        return "no value"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _shortened(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    inner = "".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">{inner}</svg>'
