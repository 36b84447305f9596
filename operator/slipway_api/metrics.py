"""What an evaluation may compute: the name, the direction and the place of every metric. No computation is here.

One table, read by three sides: the CRD (an EvalJob's gate may only name what its suites compute), the operator (which
way is worse) and the jobs (their registry must hold exactly these names; a test compares the two).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

SuiteKind = Literal["languageModeling", "multipleChoice", "generation", "latency"]

MetricName = Literal[
    "perplexity",
    "bitsPerByte",
    "loss",
    "accuracy",
    "accuracyNormalized",
    "precisionMacro",
    "precisionMicro",
    "recallMacro",
    "recallMicro",
    "f1Macro",
    "f1Micro",
    "calibrationError",
    "exactMatch",
    "tokenF1",
    "bleu",
    "chrf",
    "rouge1",
    "rouge2",
    "rougeL",
    "meteorExactStem",
    "groupDisparity",
    "biasAmplification",
    "robustnessDrop",
    "timeToFirstTokenP50",
    "timeToFirstTokenP95",
    "timeToFirstTokenP99",
    "interTokenLatencyP50",
    "interTokenLatencyP95",
    "interTokenLatencyP99",
    "tokensPerSecond",
]

MetricChoice = Literal[MetricName, "auto"]


class MetricInfo(NamedTuple):
    """One metric. `auto`: `metrics: [auto]` computes it for a suite of one of its kinds (where its data is there)."""

    name: MetricName
    kinds: tuple[SuiteKind, ...]
    higher_is_better: bool
    auto: bool = True
    needs: Literal["slices", "perturbations"] | None = None  # a field of the suite that it cannot do without


_TEXT: tuple[SuiteKind, ...] = ("generation",)
_CHOICE: tuple[SuiteKind, ...] = ("multipleChoice",)
_MODELING: tuple[SuiteKind, ...] = ("languageModeling",)
_SCORED: tuple[SuiteKind, ...] = ("languageModeling", "multipleChoice", "generation")

METRICS: tuple[MetricInfo, ...] = (
    MetricInfo("perplexity", _MODELING, False),
    MetricInfo("bitsPerByte", _MODELING, False),
    MetricInfo("loss", _MODELING, False),
    MetricInfo("accuracy", _CHOICE, True),
    MetricInfo("accuracyNormalized", _CHOICE, True),
    MetricInfo("precisionMacro", _CHOICE, True),
    MetricInfo("precisionMicro", _CHOICE, True, auto=False),
    MetricInfo("recallMacro", _CHOICE, True),
    MetricInfo("recallMicro", _CHOICE, True, auto=False),
    MetricInfo("f1Macro", _CHOICE, True),
    MetricInfo("f1Micro", _CHOICE, True, auto=False),
    MetricInfo("calibrationError", _CHOICE, False),
    MetricInfo("exactMatch", _TEXT, True),
    MetricInfo("tokenF1", _TEXT, True),
    MetricInfo("bleu", _TEXT, True),
    MetricInfo("chrf", _TEXT, True),
    MetricInfo("rouge1", _TEXT, True, auto=False),
    MetricInfo("rouge2", _TEXT, True, auto=False),
    MetricInfo("rougeL", _TEXT, True),
    MetricInfo("meteorExactStem", _TEXT, True, auto=False),
    MetricInfo("groupDisparity", _SCORED, False, needs="slices"),
    MetricInfo("biasAmplification", _CHOICE, False, needs="slices"),
    MetricInfo("robustnessDrop", _SCORED, False, needs="perturbations"),
    *(
        MetricInfo(f"{family}{percentile}", ("latency",), False)  # type: ignore[arg-type]
        for family in ("timeToFirstToken", "interTokenLatency")
        for percentile in ("P50", "P95", "P99")
    ),
    MetricInfo("tokensPerSecond", ("latency",), True),
)

BY_NAME: dict[str, MetricInfo] = {metric.name: metric for metric in METRICS}
SUITE_KINDS: tuple[SuiteKind, ...] = get_args(SuiteKind)

MAIN_METRIC: dict[SuiteKind, MetricName] = {
    "languageModeling": "perplexity",
    "multipleChoice": "accuracy",
    "generation": "tokenF1",
}
"""What slices, group disparity and robustness compare, for a suite of this kind."""


def automatic(kind: SuiteKind) -> list[MetricName]:
    """What `auto` stands for in a suite of this kind, in the table's order."""
    return [metric.name for metric in METRICS if kind in metric.kinds and metric.auto]
