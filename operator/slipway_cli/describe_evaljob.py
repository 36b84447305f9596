"""What `slipway describe` says of an EvalJob: verdict, suites, scores, gates. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from slipway_cli import jobs
from slipway_cli.durations import ago, short_duration
from slipway_cli.sections import Pairs, attempts, conditions, count, pairs, section, usage
from slipway_cli.tables import cell_text, render

Json = dict[str, Any]

_MOST_SCORES = 60  # the report has them all


def sections(obj: Json, now: datetime) -> list[str]:
    """Its sections, in the order that people ask."""
    spec, status = obj.get("spec") or {}, jobs.status_of(obj)
    return [
        pairs([("State", jobs.stage(obj)), ("Now", jobs.why(obj)), ("Model", status.get("modelName"))]),
        section("Conditions", conditions(jobs.conditions_of(obj), now)),
        section("Gates", _gates(status)),
        section("Folds", _folds(status)),
        section("Suites", _suites(status)),
        section("Scores", _scores(status)),
        section("Progress", pairs(_progress(status.get("progress") or {}, now), indent=2)),
        section("Measured", pairs(_measured(status), indent=2)),
        section("Attempts", attempts(jobs.attempt_records(obj), spec, now)),
        section("Results", pairs(_results(status.get("results") or {}), indent=2)),
        section("Used", pairs(usage(status), indent=2)),
    ]


def _gates(status: Json) -> str:
    rows = [
        [f"  {gate.get('gate')}", "holds" if gate.get("passed") else "FAILS", cell_text(gate.get("message") or "")]
        for gate in status.get("gates") or []
    ]
    return render(["  GATE", "VERDICT", "WHY"], rows) + "\n" if rows else ""


def _folds(status: Json) -> str:
    rows = [
        [f"  {fold.get('fold')}", str(fold.get("state")), f"tj/{fold.get('trainJob')}", f"ej/{fold.get('evalJob')}"]
        for fold in status.get("folds") or []
    ]
    return render(["  FOLD", "STATE", "TRAINED BY", "MEASURED BY"], rows) + "\n" if rows else ""


def _suites(status: Json) -> str:
    rows = []
    for suite in status.get("suites") or []:
        words = ": ".join(str(suite[key]) for key in ("reason", "message") if suite.get(key))
        done = f"{suite.get('done', 0)}/{suite.get('examples', 0)}" + (" cached" if suite.get("cached") else "")
        rows.append([f"  {suite.get('name')}", str(suite.get("state")), done, cell_text(words)])
    return render(["  SUITE", "STATE", "EXAMPLES", "MESSAGE"], rows) + "\n" if rows else ""


def _scores(status: Json) -> str:
    rows = []
    metrics = status.get("metrics") or []
    for metric in metrics[:_MOST_SCORES]:
        name = f"  {metric.get('suite')}/{metric.get('metric')}" + (
            f" [{metric['slice']}]" if metric.get("slice") else ""
        )
        baseline = metric.get("baseline") or {}
        against = (
            f"{baseline['value']} ({_signed(baseline['difference'])}, p {baseline.get('pValue', '?')})"
            if baseline
            else ""
        )
        interval = next((one for one in metric.get("intervals") or [] if one.get("confidence") == "0.95"), None)
        ends = f"{_short(interval['low'])} to {_short(interval['high'])}" if interval else ""
        rows.append([name, _short(metric.get("value")), ends, count(metric.get("count")), against])
    text = render(["  SCORE", "VALUE", "95% INTERVAL", "COUNT", "BASELINE"], rows) + "\n" if rows else ""
    left = len(metrics) - _MOST_SCORES
    return text + (f"  and {left} more: slipway report shows them all\n" if left > 0 else "")


def _short(value: Any) -> str:
    """Six digits are enough to look at; status and results.json have the rest."""
    try:
        return f"{float(value):.6g}"
    except (TypeError, ValueError):
        return str(value)


def _signed(value: Any) -> str:
    try:
        return f"{float(value):+.4g}"
    except (TypeError, ValueError):
        return str(value)


def _progress(progress: Json, now: datetime) -> Pairs:
    if not progress:
        return
    yield "Examples", f"{progress.get('done')} of {progress.get('total')}"
    yield "Suite", progress.get("suite")
    yield "Speed", f"{progress['examplesPerSecond']} examples/s" if progress.get("examplesPerSecond") else None
    eta = progress.get("etaSeconds")
    yield "Time left", short_duration(eta) if eta else None
    yield "Reported", f"{ago(progress['updatedAt'], now)} ago" if progress.get("updatedAt") else None


def _measured(status: Json) -> Pairs:
    for label, key in (("Model", "model"), ("Baseline", "baseline")):
        model = status.get(key) or {}
        if model:
            yield label, f"{model.get('uri')}, {count(model.get('parameters'))} parameters"
            yield "", model.get("digest")


def _results(results: Json) -> Pairs:
    yield "Where", results.get("uri")
    yield "Report", results.get("report")
