"""Which metrics a suite gets: what is asked for, what `auto` stands for, and what cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slipway_api.metrics import automatic
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.suite_metrics import decimal, wanted

from .conftest import make_run

CHOICE = {"multipleChoice": {"prompt": "{q}", "choices": ["a", "b"], "answerField": "r"}}
DATA = {"data": {"sources": [{"uri": "/nowhere"}]}}


def names(suite: dict[str, Any], **changes: Any) -> list[str]:
    run = make_run(Path("/nowhere"), [{"name": "s", **DATA, **suite}], Path("/nowhere"), **changes)
    return list(wanted(run, run.suites[0]))


def test_auto_leaves_out_what_lacks_its_data() -> None:
    plain = names(CHOICE)
    assert "accuracy" in plain
    assert not {"groupDisparity", "biasAmplification", "robustnessDrop"} & set(plain)
    full = names({**CHOICE, "slices": [{"field": "x"}], "perturbations": {}})
    assert full == automatic("multipleChoice")


def test_the_jobs_metrics_are_taken_where_they_fit() -> None:
    assert names(CHOICE, metrics=["bleu", "f1Micro", "perplexity"]) == ["f1Micro"]
    assert names({"languageModeling": {}}, metrics=["bleu", "loss"]) == ["loss"]
    assert names({**CHOICE, "metrics": ["recallMicro", "auto", "accuracy"]}, metrics=["f1Micro"])[:2] == [
        "recallMicro",
        "accuracy",
    ]


def test_slices_of_the_job_are_slices_of_the_suite() -> None:
    assert "groupDisparity" in names(CHOICE, slices=[{"field": "x"}])


def test_a_metric_that_the_suite_itself_asks_for_must_be_possible() -> None:
    with pytest.raises(UserError, match="groupDisparity needs slices") as caught:
        names({**CHOICE, "metrics": ["groupDisparity"]})
    assert caught.value.reason == "MetricNeedsMissing"
    with pytest.raises(UserError, match="robustnessDrop needs perturbations"):
        names({"languageModeling": {}, "metrics": ["robustnessDrop"]})


def test_latency_has_metrics_of_its_own() -> None:
    run = make_run(Path("/nowhere"), [{"name": "s", "latency": {}}], Path("/nowhere"), metrics=["bleu"])
    assert wanted(run, run.suites[0]) == automatic("latency")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.25"),
        (1 / 3, "0.3333333333"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (float("nan"), "NaN"),
    ],
)
def test_decimals(value: float, text: str) -> None:
    assert decimal(value) == text
