"""From the scored examples of a suite to its metrics: which are asked for, in which slices, and against the baseline.

Pure. The numbers are the metrics' own (slipway_jobs.evaluate.metrics); here is decided what is computed of what.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slipway_api.evaljob import Comparison, Interval, MetricValue, Slice, Suite
from slipway_api.metrics import BY_NAME, MAIN_METRIC, MetricName, SuiteKind, automatic
from slipway_api.run import EvalRunSpec
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.dataset import slices_of
from slipway_jobs.evaluate.examples import ScoredExample

_LABEL = 200  # characters of a group's name


def wanted(run: EvalRunSpec, suite: Suite) -> list[MetricName]:
    """The metrics of a suite, in the order that they are asked for.

    Those of the job that do not fit the suite's kind are left out, and so are those that `auto` would add where the
    suite lacks what they need. Raises UserError MetricNeedsMissing where the suite itself asks for such a one.
    """
    kind = suite.kind
    assert kind != "benchmark"
    if kind == "latency":
        return automatic(kind)
    there = {"slices": bool(slices_of(run, suite)), "perturbations": suite.perturbations is not None}
    chosen: dict[MetricName, None] = {}
    for name in suite.metrics or run.metrics:
        for one in automatic(kind) if name == "auto" else [name]:
            info = BY_NAME[one]
            if kind not in info.kinds:
                continue
            if info.needs is not None and not there[info.needs]:
                if name != "auto" and suite.metrics:
                    raise UserError(
                        "MetricNeedsMissing",
                        f"suite {suite.name}: the metric {one} needs {info.needs}; set them, or leave the metric out",
                    )
                continue
            chosen[one] = None
    return list(chosen)


def compute(
    run: EvalRunSpec,
    suite: Suite,
    examples: Sequence[ScoredExample],
    baseline: Sequence[ScoredExample] | None = None,
) -> tuple[list[MetricValue], list[str]]:
    """Every metric of a suite, of all examples and of each slice, and what the user should know about them.

    `baseline` are the same examples scored by the baseline: paired by their ids.
    """
    kind = suite.kind
    assert kind != "benchmark"
    names = wanted(run, suite)
    asked = [name for name in suite.metrics or run.metrics if name != "auto"]
    warnings = list(_label_warnings(suite, examples))
    values = [_value(run, suite, kind, name, "", examples, baseline) for name in names]
    main = MAIN_METRIC.get(kind)
    in_slices = [name for name in names if (name == main or name in asked) and BY_NAME[name].needs != "slices"]
    for one in slices_of(run, suite):
        for label, group in _groups(one, examples):
            if not group:
                warnings.append(f"slice {one.field}={label} has no examples")
            ids = {example.id for example in group}
            theirs = None if baseline is None else [example for example in baseline if example.id in ids]
            where = f"{one.field}={label}"[:_LABEL]
            values.extend(_value(run, suite, kind, name, where, group, theirs) for name in in_slices)
    return _unique(values), warnings


def _groups(one: Slice, examples: Sequence[ScoredExample]) -> Iterator[tuple[str, list[ScoredExample]]]:
    """The groups of a slice: those that it names, else the most frequent ones, by name where equal."""
    from slipway_jobs.evaluate.metrics.groups import groups_of  # noqa: PLC0415

    by_label: dict[str, list[ScoredExample]] = {}
    for example in examples:
        if one.field in example.fields:
            by_label.setdefault(example.fields[one.field], []).append(example)
    if not by_label and not one.values:
        yield "(any)", []
        return
    for label in groups_of(one, examples):
        yield label, by_label.get(label, [])


def _label_warnings(suite: Suite, examples: Sequence[ScoredExample]) -> Iterator[str]:
    """Labels that no example has: precision and recall of them say nothing."""
    if suite.multiple_choice is None or not suite.multiple_choice.choices:
        return
    seen = Counter(example.choice.labels[example.choice.gold] for example in examples if example.choice is not None)
    never = [label for label in suite.multiple_choice.choices if not seen[label]]
    if never:
        yield f"no example has the label {', '.join(map(repr, never[:10]))}{', ...' if len(never) > 10 else ''}"


def _value(
    run: EvalRunSpec,
    suite: Suite,
    kind: SuiteKind,
    name: MetricName,
    where: str,
    examples: Sequence[ScoredExample],
    baseline: Sequence[ScoredExample] | None,
) -> MetricValue:
    from slipway_jobs.evaluate.metrics import REGISTRY, MetricContext  # noqa: PLC0415 - numpy, scipy, sacrebleu

    better = BY_NAME[name].higher_is_better
    if not examples:
        return MetricValue(
            suite=suite.name, metric=name, slice=where, value="NaN", higher_is_better=better, count=0, seed=run.seed
        )
    context = MetricContext(
        seed=run.seed, confidences=tuple(run.confidences), slices=tuple(slices_of(run, suite)), kind=kind
    )
    score = REGISTRY[name].compute(examples, context)
    return MetricValue(
        suite=suite.name,
        metric=name,
        slice=where,
        value=decimal(score.value),
        higher_is_better=better,
        count=score.count,
        seed=run.seed,
        standard_error=None if score.standard_error is None else decimal(score.standard_error),
        method=score.method,
        intervals=_intervals(score.intervals),
        baseline=_comparison(name, examples, baseline, context) if baseline is not None else None,
    )


def _comparison(
    name: MetricName, ours: Sequence[ScoredExample], baseline: Sequence[ScoredExample], context: Any
) -> Comparison | None:
    """The baseline on the same examples; None where it has not all of them."""
    from slipway_jobs.evaluate.metrics import REGISTRY, compare  # noqa: PLC0415

    theirs = {example.id: example for example in baseline}
    if any(example.id not in theirs for example in ours):
        return None
    paired = [theirs[example.id] for example in ours]
    numbers = compare(name, ours, paired, context)
    return Comparison(
        value=decimal(REGISTRY[name].compute(paired, context).value),
        difference=decimal(numbers.difference),
        p_value=None if numbers.p_value is None else decimal(numbers.p_value),
        test=numbers.test,
        intervals=_intervals(numbers.intervals),
    )


def _intervals(intervals: Mapping[Any, tuple[float, float]]) -> list[Interval]:
    return [
        Interval(confidence=confidence, low=decimal(low), high=decimal(high))
        for confidence, (low, high) in intervals.items()
    ]


def _unique(values: Sequence[MetricValue]) -> list[MetricValue]:
    """One of each (metric, slice): status is a map by them. Long labels may have become the same."""
    return list({(value.metric, value.slice): value for value in reversed(values)}.values())[::-1]


def decimal(value: float) -> str:
    """A number as the API writes it."""
    return f"{value:.10g}" if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
