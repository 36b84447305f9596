"""From the harness's results to metrics, intervals and rows; and two models on the same documents.

Names. A metric is called as the harness calls it: `acc`, or `exact_match,strict-match` where the task filters answers
in several ways. Where a benchmark is one task or one group, its own scores bear that name alone, and those of the
tasks within a group are `<task>/acc`; where it is several tasks without an aggregate, all are `<task>/acc`. So a gate
can name each of them.

Errors are the harness's own standard errors, and intervals their normal approximation. A baseline is compared by
document: exactly (McNemar) where scores are 0 or 1, else by the mean of the differences. Only where the score is the
mean of its documents' scores; for others (F1, BLEU over the corpus) the difference is given without a p-value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

from slipway_api.evaljob import Comparison, Confidence, Interval, MetricValue

_SAME_MEAN = 1e-9


@dataclass(frozen=True)
class BenchmarkScores:
    """What one model reached. `rows` are plain and all have the same keys, one for each document and filter."""

    metrics: tuple[MetricValue, ...]
    rows: tuple[dict[str, Any], ...]
    values: Mapping[str, tuple[float, ...]]  # metric -> score of each document, where the metric is their mean
    versions: Mapping[str, Any]  # of the tasks, as the harness counts them
    warnings: tuple[str, ...]


def scores_of(
    result: Mapping[str, Any],
    loaded: Mapping[str, Any],
    *,
    suite: str,
    roots: Sequence[str],
    seed: int,
    confidences: Sequence[Confidence],
) -> BenchmarkScores:
    """What the harness's `evaluate` returned, in our words; scores of the whole benchmark first."""
    metrics: list[MetricValue] = []
    values: dict[str, tuple[float, ...]] = {}
    warnings: list[str] = []
    only = roots[0] if len(roots) == 1 else None
    for name in (*roots, *(name for name in result["results"] if name not in roots)):
        found = result["results"].get(name, {})
        for metric, chosen in _metric_keys(found):
            label = metric if chosen == "none" else f"{metric},{chosen}"
            full = label if name == only else f"{name}/{label}"
            value = _number(found[f"{metric},{chosen}"])
            if value is None:
                warnings.append(f"{full} is left out: it is {found[f'{metric},{chosen}']!r}, not a number")
                continue
            error = _number(found.get(f"{metric}_stderr,{chosen}"))
            direction = (result["higher_is_better"].get(name) or {}).get(metric)
            metrics.append(
                MetricValue(
                    suite=suite,
                    metric=full,
                    value=_text(value),
                    # The harness's convention where a task does not say.
                    higher_is_better=True if direction is None else bool(direction),
                    count=int(found.get("sample_len") or 0),
                    seed=seed,
                    standard_error=None if error is None else _text(error),
                    method="" if error is None else "lm_eval, normal",
                    intervals=[] if error is None else intervals(value, error, confidences),
                )
            )
            documents = _documents(result, loaded, name, metric, chosen)
            if documents and abs(fmean(documents) - value) <= _SAME_MEAN * max(1.0, abs(value)):
                values[full] = documents
    rows = tuple(_rows(result["samples"]))
    return BenchmarkScores(tuple(metrics), rows, values, dict(result["versions"]), tuple(warnings))


def compare(
    ours: BenchmarkScores, baseline: BenchmarkScores, confidences: Sequence[Confidence]
) -> tuple[MetricValue, ...]:
    """Our metrics with the baseline's beside them. Both must come from the same prepared benchmark."""
    theirs = {metric.metric: metric for metric in baseline.metrics}
    return tuple(
        metric
        if (other := theirs.get(metric.metric)) is None
        else metric.model_copy(
            update={
                "baseline": _comparison(
                    float(metric.value),
                    float(other.value),
                    ours.values.get(metric.metric, ()),
                    baseline.values.get(metric.metric, ()),
                    confidences,
                )
            }
        )
        for metric in ours.metrics
    )


def intervals(value: float, error: float, confidences: Sequence[Confidence]) -> list[Interval]:
    """Two-sided normal intervals."""
    found = []
    for confidence in confidences:
        reach = NormalDist().inv_cdf(0.5 + float(confidence) / 2) * error
        found.append(Interval(confidence=confidence, low=_text(value - reach), high=_text(value + reach)))
    return found


def _comparison(
    value: float, other: float, ours: Sequence[float], theirs: Sequence[float], confidences: Sequence[Confidence]
) -> Comparison:
    plain = Comparison(value=_text(other), difference=_text(value - other))
    if len(ours) < 2 or len(ours) != len(theirs):
        return plain
    differences = [left - right for left, right in zip(ours, theirs, strict=True)]
    error = stdev(differences) / math.sqrt(len(differences))
    if {*ours, *theirs} <= {0.0, 1.0}:
        test, p_value = "McNemar", mcnemar(differences.count(1.0), differences.count(-1.0))
    else:
        test, p_value = "paired normal", _two_sided(fmean(differences), error)
    return plain.model_copy(
        update={"p_value": _text(p_value), "test": test, "intervals": intervals(value - other, error, confidences)}
    )


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p-value of McNemar's test: binomial over the documents on which the two differ
    (McNemar 1947, https://doi.org/10.1007/BF02295996)."""
    count = better + worse
    tail = sum(math.comb(count, fewer) for fewer in range(min(better, worse) + 1))
    return min(1.0, tail / 2 ** (count - 1)) if count else 1.0


def _two_sided(mean: float, error: float) -> float:
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return math.erfc(abs(mean) / error / math.sqrt(2))


# --- the harness's forms ------------------------------------------------------------------------------------------


def _metric_keys(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(metric, filter) of the keys `metric,filter` that are scores, in the harness's order."""
    for key in found:
        metric, separator, chosen = key.partition(",")
        if separator and not metric.endswith("_stderr"):
            yield metric, chosen


def _documents(
    result: Mapping[str, Any], loaded: Mapping[str, Any], name: str, metric: str, chosen: str
) -> tuple[float, ...]:
    """The scores of a task's documents, or of all documents of a group's tasks; empty where they are no numbers."""
    group = loaded.get("groups", {}).get(name)
    tasks = [task.task_name for task in group.get_all_tasks()] if group is not None else [name]
    found: list[float] = []
    for task in tasks:
        for sample in result["samples"].get(task, ()):
            if sample["filter"] == chosen:
                value = _number(sample.get(metric))
                if value is None:
                    return ()
                found.append(value)
    return tuple(found)


def _rows(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """A row for each document and filter. Columns `score_<metric>` hold a number or None."""
    names = sorted({metric for listed in samples.values() for sample in listed for metric in sample["metrics"]})
    for task, listed in samples.items():
        for sample in listed:
            arguments = sample["arguments"]
            likelihoods, answer = _responses(sample)
            yield {
                "task": task,
                "index": int(sample["doc_id"]),
                "id": str(sample["doc_hash"]),
                "filter": str(sample["filter"]),
                "prompt": str(arguments[0][0]),
                "continuations": [str(one[1]) for one in arguments] if likelihoods else [],
                "log_likelihoods": likelihoods,
                "answer": answer,
                "target": _string(sample["target"]),
                "document": json.dumps(sample["doc"], default=repr, ensure_ascii=False),
                **{f"score_{name}": _number(sample.get(name)) for name in names},
            }


def _responses(sample: Mapping[str, Any]) -> tuple[list[float], str]:
    """Log-likelihoods (of pairs), or the answer as the filter left it."""
    first = [responses[0] for responses in sample["resps"]]
    if all(isinstance(one, tuple | list) and len(one) == 2 for one in first):
        return [float(score) for score, _ in first], ""
    if all(isinstance(one, float) for one in first):
        return [], _text(sum(first))  # a whole text's log-likelihood
    return [], _string(sample["filtered_resps"][0])


def _string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=repr, ensure_ascii=False)


def _number(value: Any) -> float | None:
    """A finite number, of numpy's types too; None for anything else."""
    if isinstance(value, str | bytes) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _text(value: float) -> str:
    return f"{value:.10g}"
