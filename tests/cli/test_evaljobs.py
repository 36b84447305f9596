"""EvalJobs on the command line: describe, wait, report."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from slipway_cli.commands.report import local_path
from slipway_operator.kube.resource import EVALJOBS, Json

from .conftest import World

MANIFEST = """\
apiVersion: slipway.dev/v1alpha1
kind: EvalJob
metadata:
  name: {name}
spec:
  model: {{trainJob: {{name: base}}}}
  data: {{sources: [{{uri: "python://stdlib"}}]}}
  suites: [{{name: held-out, languageModeling: {{}}}}]
  gate: [{{metric: perplexity, op: "<=", value: "200"}}]
"""
TIME = "2026-01-01T00:00:00Z"


def condition(type_: str, status: str, reason: str, message: str) -> Json:
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": TIME}


def apply(world: World, name: str, **status: Any) -> None:
    result = world.slipway("apply", "-f", "-", stdin=MANIFEST.format(name=name))
    assert result.code == 0, result.err
    set_status(world, name, **status)


def set_status(world: World, name: str, **status: Any) -> None:
    patch = {"status": status}
    world.api(lambda client: client.merge_patch(EVALJOBS, "default", name, patch, subresource="status"))


def ended(value: str, passed: str) -> dict[str, Any]:
    return {
        "state": "Succeeded",
        "modelName": "tj/base",
        "suitesSummary": "1/1",
        "progress": {"done": 9, "total": 9, "summary": "9/9"},
        "conditions": [
            condition("Succeeded", "True", "ResultsSaved", "saved"),
            condition("Failed", "False", "NotFailed", "the job succeeded"),
            condition("Passed", passed, "GatesFailed", f"held-out/perplexity <= 200: it is {value}"),
        ],
        "suites": [{"name": "held-out", "state": "Succeeded", "examples": 9, "done": 9, "cached": True}],
        "metrics": [
            {
                "suite": "held-out",
                "metric": "perplexity",
                "value": value,
                "higherIsBetter": False,
                "count": 1234,
                "intervals": [{"confidence": "0.95", "low": "170.5", "high": "190.25"}],
                "baseline": {"value": "4284", "difference": "-4103", "pValue": "1e-09"},
            }
        ],
        "gates": [{"gate": "perplexity <= 200", "passed": passed == "True", "message": f"it is {value}"}],
        "results": {"uri": "file:///data/r", "report": "file:///data/r/report.html"},
    }


def test_columns_and_description(world: World) -> None:
    apply(world, "told", **ended("181.7", "True"))
    table = world.slipway("get", "ej", "told").out
    assert table.split("\n")[0].split() == ["NAME", "MODEL", "SUITES", "PASSED", "PROGRESS", "AGE"]
    assert table.split("\n")[1].split()[:5] == ["told", "tj/base", "1/1", "True", "9/9"]
    text = world.slipway("describe", "ej/told").out
    for words in ("held-out/perplexity", "181.7", "170.5 to 190.25", "1,234", "4284 (-4103, p 1e-09)", "9/9 cached"):
        assert words in text
    assert "perplexity <= 200" in text
    assert "holds" in text


def test_wait_for_a_verdict_that_will_not_come(world: World) -> None:
    apply(world, "bad", **ended("250", "False"))
    result = world.slipway("wait", "ej/bad", "--for=condition=Passed", "--timeout=30s")
    assert result.code == 1
    assert "will not come true: GatesFailed: held-out/perplexity <= 200: it is 250" in result.err
    assert world.slipway("wait", "ej/bad", "--for=condition=Succeeded", "--timeout=5s").code == 0
    assert world.slipway("wait", "ej/bad", "--for=condition=Passed=False", "--timeout=5s").code == 0


def test_wait_shows_how_far_it_is(world: World) -> None:
    progress = {"done": 3, "total": 9, "suite": "held-out", "examplesPerSecond": "2.5", "etaSeconds": 2}
    running = [condition("Running", "True", "Evaluating", "examples are scored")]
    apply(world, "slow", state="Evaluating", progress=progress, conditions=running)

    def finish() -> None:
        time.sleep(1.0)
        set_status(world, "slow", **ended("150", "True"))

    thread = threading.Thread(target=finish)
    thread.start()
    result = world.slipway("wait", "ej/slow", "--for=condition=Passed", "--timeout=30s")
    thread.join()
    assert result.code == 0, result.err
    assert "slow: Evaluating: example 3/9, suite held-out, 2.5 examples/s, ETA 2s" in result.out
    assert "Passed is True" in result.out


def test_report_prints_where_it_is(world: World) -> None:
    apply(world, "done", **ended("150", "True"))
    result = world.slipway("report", "ej/done", "--no-open")
    assert (result.code, result.out) == (0, "/data/r/report.html\n")


def test_a_cross_validation_shows_its_folds(world: World) -> None:
    status = {name: value for name, value in ended("150", "True").items() if name != "results"}
    folds = [{"fold": i, "trainJob": f"cv-fold-{i}", "evalJob": f"cv-fold-{i}", "state": "Training"} for i in range(2)]
    apply(world, "cv", **status, folds=folds)
    (line,) = [line for line in world.slipway("describe", "ej/cv").out.split("\n") if "ej/cv-fold-1" in line]
    assert line.split() == ["1", "Training", "tj/cv-fold-1", "ej/cv-fold-1"]
    result = world.slipway("report", "ej/cv")
    assert result.code == 1
    assert "each of its folds has a report (ej/cv-fold-0, ej/cv-fold-1)" in result.err


def test_report_before_the_end_says_what_it_is_doing(world: World) -> None:
    running = [condition("Running", "True", "Evaluating", "examples are scored")]
    apply(world, "early", state="Evaluating", conditions=running)
    result = world.slipway("report", "ej/early")
    assert result.code == 1
    assert "ej/early has no report yet: it is Evaluating" in result.err
    world.apply("job")
    assert "reports are of EvalJobs and Deployments, not of TrainJob" in world.slipway("report", "tj/job").err


@pytest.mark.parametrize(
    ("place", "path"),
    [("file:///a/b.html", "/a/b.html"), ("file://localhost/a", "/a"), ("/a/b", "/a/b"), ("s3://bucket/x", None)],
)
def test_which_reports_are_files_of_this_machine(place: str, path: str | None) -> None:
    assert local_path(place) == (Path(path) if path else None)
