"""The report of a watcher: one page without any other file, with the history of every signal. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from slipway_api.drift import DriftAlarm, DriftStatus
from slipway_api.serving import WatcherConfig
from slipway_jobs.drift.signals import kind_of
from slipway_serving.watcher.history import History, Point

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667; --line: #d8dbe2; --back: #fff; --bar: #3b6fd4;
  --mark: #d4662b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ee; --soft: #9aa0ae; --line: #3a3f4b; --back: #14161b;
  --bar: #6f9cf0; --mark: #f0975f; --bad: #f28b82; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.soft { color: var(--soft); } .bad { color: var(--bad); font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; } svg { width: 100%; height: auto; }
.effect { fill: none; stroke: var(--bar); stroke-width: 1.5; }
.threshold { stroke: var(--mark); stroke-dasharray: 4 3; }
.axis { stroke: var(--line); } .alarm { fill: var(--bad); } .point { fill: var(--bar); }
"""
_WIDTH, _HEIGHT, _EDGE = 300.0, 90.0, 6.0


def render(
    config: WatcherConfig, status: DriftStatus, history: History, outputs: Mapping[str, Any] | None = None
) -> str:
    """The page. `outputs`: of the profile, if it has any."""
    title = f"{config.namespace}/{config.name}"
    active = ", ".join(escape(signal) for signal in status.active)
    body = [
        f"<h1>Drift of {escape(title)}</h1>",
        f'<p class="soft">version {escape(config.version)}, reference {escape(status.profile)}<br>'
        f"{status.windows:,} windows of {config.window_requests:,} requests judged, {status.requests:,} captured, "
        f"{status.dropped:,} dropped; {escape(status.time or 'no window yet')}</p>",
        f'<p class="bad">Drifted now: {active}</p>' if active else "<p>No signal is drifted.</p>",
        _alarms(status.alarms),
        _signals(history),
        _outputs(outputs or {}),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Drift of {escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _alarms(alarms: Sequence[DriftAlarm]) -> str:
    if not alarms:
        return "<h2>Alarms</h2><p>None yet.</p>"
    head = "".join(f"<th>{name}</th>" for name in ("kind", "signal", "test"))
    head += "".join(f"<th class=n>{name}</th>" for name in ("statistic", "effect", "threshold", "p", "window"))
    rows = []
    for alarm in alarms:
        words = "".join(f"<td>{escape(word)}</td>" for word in (alarm.kind, alarm.signal, alarm.test))
        figures = (alarm.statistic, alarm.effect, alarm.threshold, alarm.p_value or "", str(alarm.window))
        numbers = "".join(f"<td class=n>{escape(figure)}</td>" for figure in figures)
        rows.append(f"<tr>{words}{numbers}<td>{escape(alarm.start)} to {escape(alarm.end)}</td></tr>")
    return f"<h2>Alarms</h2><table><tr>{head}<th>when</th></tr>{''.join(rows)}</table>"


def _signals(history: History) -> str:
    figures = [_figure(signal, list(points)) for signal, points in sorted(history.points.items()) if points]
    left_out = "".join(f"<li>{escape(signal)}: {escape(why)}</li>" for signal, why in sorted(history.skipped.items()))
    skipped = f"<p>Not judged in the last window:</p><ul>{left_out}</ul>" if left_out else ""
    explained = (
        '<p class="soft">Effect size by window, and the threshold (dashed) that the reference compared with '
        "itself gives. A dot is an alarm: the evidence over the windows so far was strong enough, too.</p>"
    )
    return f'<h2>Signals</h2>{explained}<div class="grid">{"".join(figures)}</div>{skipped}'


def _outputs(outputs: Mapping[str, Any]) -> str:
    if not outputs:
        return ""
    names = ("tokens", "entropy")
    head = "".join(f"<th class=n>{quantile:.0%}</th>" for quantile in outputs["quantiles"])
    rows = "".join(
        f"<tr><td>output.{name}</td>{''.join(f'<td class=n>{value:.3g}</td>' for value in outputs[name])}</tr>"
        for name in names
    )
    return (
        f'<h2>What the model wrote after training</h2><p class="soft">Quantiles over its answers to '
        f"{int(outputs['prompts'])} held-out requests, at temperature 1 and up to {int(outputs['maxTokens'])} tokens "
        f"({int(outputs['ended'])} ended before): tokens of each, and entropy of each token in nats. Nothing is "
        "compared with them: what clients ask for decides both.</p>"
        f"<table><tr><th></th>{head}</tr>{rows}</table>"
    )


def _figure(signal: str, points: Sequence[Point]) -> str:
    newest = points[-1]
    top = 1.1 * max(
        [*(_finite(point.effect) for point in points), *(_finite(point.threshold) for point in points), 1e-9]
    )
    step = (_WIDTH - 2 * _EDGE) / max(1, len(points) - 1)

    def height(value: float) -> float:
        return _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * min(1.0, _finite(value) / top)

    places = [(_EDGE + step * number, height(point.effect)) for number, point in enumerate(points)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    limit = height(newest.threshold)
    marks = "".join(
        f'<circle class="alarm" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        for (x, y), point in zip(places, points, strict=True)
        if point.alarm
    )
    dot = f'<circle class="point" cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="2.5"/>'
    state = ' <span class="bad">drifted</span>' if newest.drifted else ""
    return (
        f"<figure><figcaption>{escape(signal)} <span class=soft>({kind_of(signal).value})</span>{state}<br>"
        f'<span class="soft">effect {newest.effect:.3g}, threshold {newest.threshold:.3g}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(signal)}">'
        f'<line class="axis" x1="0" y1="{_HEIGHT - _EDGE:g}" x2="{_WIDTH:g}" y2="{_HEIGHT - _EDGE:g}"/>'
        f'<line class="threshold" x1="0" y1="{limit:.1f}" x2="{_WIDTH:g}" y2="{limit:.1f}"/>'
        f'<polyline class="effect" points="{line}"/>{dot}{marks}</svg></figure>'
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
