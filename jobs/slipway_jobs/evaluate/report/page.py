"""Puts the page together: header, verdict, scores, a section for each suite, where everything comes from. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from slipway_api.gates import JudgedGate, Verdict
from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.calibration_error import BINS, bin_of
from slipway_jobs.evaluate.report.plots import Bar, Bin, bars, figure, histogram, reliability
from slipway_jobs.evaluate.report.worst import worst

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667; --line: #d8dbe2; --back: #fff; --bar: #3b6fd4;
  --mark: #d4662b; --good: #1d7f43; --bad: #b3261e; --box: #f5f6f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ee; --soft: #9aa0ae; --line: #3a3f4b; --back: #14161b;
  --bar: #6f9cf0; --mark: #f0975f; --good: #6cc68c; --bad: #f28b82; --box: #1d2027; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.soft, .figure, .label { color: var(--soft); fill: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; } .better { color: var(--good); } .worse { color: var(--bad); }
svg { width: 100%; height: auto; margin: .5rem 0 1rem; overflow: visible; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); } svg text.title { font-weight: 600; }
svg text.figure, svg text.label { fill: var(--soft); } svg text.end { text-anchor: end; }
.bar { fill: var(--bar); } .interval { stroke: var(--ink); } .baseline { stroke: var(--mark); stroke-width: 3; }
.axis { stroke: var(--line); } .frame { fill: none; stroke: var(--line); }
details { background: var(--box); border-radius: .4rem; padding: .4rem .8rem; margin: .4rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .6rem; } summary { cursor: pointer; }
.failed, .held { border-left: 4px solid var(--bad); padding-left: .8rem; } .held { border-color: var(--good); }
"""

Scored = Mapping[str, Mapping[Any, Sequence[ScoredExample]]]


def render(document: Mapping[str, Any], scored: Scored, verdict: Verdict) -> str:
    """The page. `document` is results.json; `scored`: suite -> which model -> its examples."""
    title = f"{document['namespace']}/{document['name']}"
    body = [
        f"<h1>Evaluation {escape(title)}</h1>",
        f'<p class="soft">{_models(document)}</p>',
        _verdict(verdict),
        _scores(document),
        *(_suite(suite, document, scored.get(suite["name"], {})) for suite in document["suites"]),
        _origin(document),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _models(document: Mapping[str, Any]) -> str:
    named = [f"{which}: {_model(document.get(which))}" for which in ("model", "baseline") if document.get(which)]
    return "<br>".join(named)


def _model(model: Mapping[str, Any] | None) -> str:
    if model is None:
        return "unknown"
    return f"{escape(str(model['uri']))}, {model.get('parameters', 0):,} parameters"


# --- the verdict --------------------------------------------------------------------------------------------------


def _verdict(verdict: Verdict) -> str:
    """Passed or not, and every gate with what was held against what: those that fail first."""
    if not verdict.gates:
        return '<p class="soft">No gates were asked for.</p>'
    failing = [gate for gate in verdict.gates if not gate.passed]
    kind, word = ("failed", "Not passed") if failing else ("held", "Passed")
    count = f"{len(failing)} of {len(verdict.gates)} gates fail" if failing else f"all {len(verdict.gates)} gates hold"
    head = "<th>gate</th><th class=n>score</th><th class=n>judged</th><th class=n>threshold</th><th>verdict</th>"
    rows = "\n".join(_gate(gate) for gate in sorted(verdict.gates, key=lambda gate: gate.passed))
    return (
        f'<p class="{kind}"><strong>{word}</strong>: {count}.</p><table><tr>{head}</tr>\n{rows}</table>'
        '<p class="soft">By the gates that the run began with. They may be changed later: the condition Passed says '
        "what holds now.</p>"
    )


def _gate(gate: JudgedGate) -> str:
    numbers = [figure(number(text)) if text else "none" for text in (gate.value, gate.judged)]
    word, kind = ("holds", "better") if gate.passed else ("fails", "worse")
    return (
        f"<tr><td>{escape(gate.words)}<br><span class=soft>{escape(gate.message)}</span></td>"
        f"<td class=n>{numbers[0]}</td><td class=n>{numbers[1]}</td><td class=n>{escape(gate.threshold) or 'none'}</td>"
        f"<td class={kind}>{word}</td></tr>"
    )


# --- scores -------------------------------------------------------------------------------------------------------


def _scores(document: Mapping[str, Any]) -> str:
    whole = [metric for metric in document["metrics"] if not metric.get("slice")]
    compared = any(metric.get("baseline") for metric in whole)
    head = "<th>suite</th><th>metric</th><th class=n>score</th><th class=n>interval</th><th class=n>rests on</th>"
    if compared:
        head += "<th class=n>baseline</th><th class=n>difference</th><th class=n>p</th>"
    rows = "\n".join(_score(metric, compared=compared) for metric in whole)
    return f"<h2>Scores</h2><table><tr>{head}</tr>\n{rows}</table>"


def _score(metric: Mapping[str, Any], *, compared: bool) -> str:
    way = "higher is better" if metric["higherIsBetter"] else "lower is better"
    error = f" ± {figure(number(metric['standardError']))}" if metric.get("standardError") else ""
    cells = [
        f"<td>{escape(metric['suite'])}</td><td>{escape(metric['metric'])} <span class=soft>{way}</span></td>",
        f"<td class=n>{figure(number(metric['value']))}<span class=soft>{error}</span></td>",
        f"<td class=n>{_interval(metric.get('intervals', []))}</td><td class=n>{metric['count']:,}</td>",
    ]
    if compared:
        cells.append(_difference(metric))
    return f"<tr>{''.join(cells)}</tr>"


def _interval(intervals: Sequence[Mapping[str, Any]]) -> str:
    """The one of 95%, or the first."""
    found = next((one for one in intervals if one["confidence"] == "0.95"), intervals[0] if intervals else None)
    if found is None:
        return ""
    ends = f"{figure(number(found['low']))} – {figure(number(found['high']))}"
    return f"{ends} <span class=soft>{float(found['confidence']):.0%}</span>"


def _difference(metric: Mapping[str, Any]) -> str:
    comparison = metric.get("baseline")
    if not comparison:
        return "<td></td><td></td><td></td>"
    difference, p_value = number(comparison["difference"]), number(comparison.get("pValue") or "NaN")
    kind = ""
    if difference and p_value < 0.05:
        kind = "better" if (difference > 0) == metric["higherIsBetter"] else "worse"
    certainty = "" if math.isnan(p_value) else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
    test = escape(comparison.get("test", ""), quote=True)
    return (
        f"<td class=n>{figure(number(comparison['value']))}</td><td class='n {kind}'>{difference:+.4g}</td>"
        f'<td class=n title="{test}">{certainty}</td>'
    )


def number(text: str) -> float:
    """A decimal of the API; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


# --- suites -------------------------------------------------------------------------------------------------------


def _suite(suite: Mapping[str, Any], document: Mapping[str, Any], scored: Mapping[Any, Sequence[ScoredExample]]) -> str:
    name = str(suite["name"])
    parts = [f"<h2>{escape(name)}</h2>"]
    if suite["state"] == "Failed":
        why = escape(f"{suite.get('reason', 'Failed')}: {suite.get('message', '')}")
        return f'{parts[0]}<p class="failed">This suite failed. {why}</p>'
    if suite.get("message"):
        parts.append(f'<p class="soft">{escape(suite["message"])}</p>')
    parts += _slices(name, document["metrics"])
    examples = scored.get("model", [])
    parts += [plot for plot in _plots(examples) if plot]
    shown = worst(examples)
    if shown:
        parts.append("<h3>The worst examples</h3>")
        parts += [_example(one.heading, one.texts) for one in shown]
    return "\n".join(parts)


def _slices(suite: str, metrics: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """A plot for each metric that has slices, all examples first."""
    names = dict.fromkeys(m["metric"] for m in metrics if m["suite"] == suite and m.get("slice"))
    for name in names:
        rows = [m for m in metrics if m["suite"] == suite and m["metric"] == name]
        yield bars(f"{name} by slice", [_bar(row) for row in sorted(rows, key=lambda row: bool(row.get("slice")))])


def _bar(metric: Mapping[str, Any]) -> Bar:
    interval = next((one for one in metric.get("intervals", []) if one["confidence"] == "0.95"), None)
    baseline = metric.get("baseline")
    return Bar(
        label=metric.get("slice") or "all examples",
        value=number(metric["value"]),
        low=number(interval["low"]) if interval else None,
        high=number(interval["high"]) if interval else None,
        baseline=number(baseline["value"]) if baseline else None,
    )


def _plots(examples: Sequence[ScoredExample]) -> Iterable[str]:
    losses = [e.modeling.nll / max(1, e.modeling.tokens) for e in examples if e.modeling is not None]
    yield histogram("Loss of documents", losses, unit="nats a token")
    bins = _bins(examples)
    if bins:
        yield reliability("How sure, and how often right", bins)
    lengths = [float(e.generation.tokens) for e in examples if e.generation is not None]
    yield histogram("Length of answers", lengths, unit="tokens")
    times = [1000 * e.latency.first_token_seconds for e in examples if e.latency is not None]
    yield histogram("Time to the first token", times, unit="ms")


def _bins(examples: Sequence[ScoredExample]) -> list[Bin]:
    """The bins of the calibration error that hold examples."""
    held: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for example in examples:
        if example.choice is not None:
            confidence = max(example.choice.probabilities)
            held[bin_of(confidence)].append((confidence, example.choice.predicted == example.choice.gold))
    return [
        Bin(sum(c for c, _ in one) / len(one), sum(right for _, right in one) / len(one), len(one))
        for one in held
        if one
    ]


def _example(heading: str, texts: Sequence[tuple[str, str]]) -> str:
    inner = "".join(f"<span class=soft>{escape(name)}</span><pre>{escape(text)}</pre>" for name, text in texts)
    return f"<details><summary>{escape(heading)}</summary>{inner}</details>"


# --- where it comes from ------------------------------------------------------------------------------------------


def _origin(document: Mapping[str, Any]) -> str:
    rows = [("seed", document.get("seed")), ("precision", document.get("precision"))]
    rows += [(f"{w} digest", document[w].get("digest")) for w in ("model", "baseline") if document.get(w)]
    rows += [(f"suite {suite['name']}", suite.get("digest")) for suite in document["suites"] if suite.get("digest")]
    rows += list(document.get("libraries", {}).items())
    cells = "\n".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in rows)
    return f"<h2>Where this comes from</h2><table>{cells}</table>"
