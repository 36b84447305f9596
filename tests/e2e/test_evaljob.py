"""An evaluation from a manifest to its verdict: a gate that holds, one that does not, and nothing computed twice."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Stack, condition, finished, train_job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


def path_of(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def evaluation(name: str, corpus: Path, rows: Path, **changes: Any) -> dict[str, Any]:
    spec = {
        "model": {"trainJob": {"name": "measured"}},
        "baseline": {"trainJob": {"name": "untaught"}},
        "suites": [
            {
                "name": "texts",
                "languageModeling": {"windowTokens": 64},
                "data": {
                    "sources": [
                        {"uri": corpus.as_uri(), "include": ["part-4.txt", "part-5.txt", "part-6.txt", "part-7.txt"]}
                    ]
                },
            },
            {
                "name": "verbs",
                "multipleChoice": {
                    "prompt": "{subject}",
                    "choices": [" reads", " writes", " keeps"],
                    "answerField": "verb",
                },
                "data": {"sources": [{"uri": rows.as_uri(), "format": "jsonl"}]},
            },
            {
                "name": "nowhere",
                "languageModeling": {},
                "data": {"sources": [{"uri": "file:///no/such/file.txt"}]},
            },
        ],
        "gate": [
            {"suite": "texts", "metric": "perplexity", "op": "<", "value": "400"},
            {"suite": "texts", "metric": "perplexity", "notWorseThan": "baseline", "confidence": "0.95"},
        ],
    }
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "slipway.dev/v1alpha1", "kind": "EvalJob", "metadata": metadata, "spec": spec | changes}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "verbs.jsonl"
    lines = [{"subject": f"Node {i}", "verb": (" reads", " writes", " keeps")[i % 3]} for i in range(30)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


@pytest.fixture(scope="module")
def measured(stack: Stack, corpus: Path, rows: Path) -> dict[str, Any]:
    """The status of an evaluation of a trained model against one that has hardly been."""
    one = {"count": 1, "resources": {"cpu": "1", "memory": "512Mi"}}
    for name, rate, steps in (("measured", "3e-3", 40), ("untaught", "1e-9", 1)):
        training = {"steps": steps, "globalBatchSize": 4, "microBatchSize": 4, "precision": "fp32"}
        training["optimizer"] = {"learningRate": rate}
        job = train_job(name, corpus, training=training, workers=one, strategy={"ddp": {}})
        stack.apply(job)
    stack.apply(evaluation("check", corpus, rows))  # waits for both
    return stack.wait("check", finished, 240, "evaljobs")


def test_scores_verdict_and_columns(stack: Stack, measured: dict[str, Any]) -> None:
    assert condition(measured, "Succeeded")[0] == "True", measured
    assert condition(measured, "Passed")[:2] == ("True", "GatesHold"), measured
    found = {(m["suite"], m["metric"]): m for m in measured["metrics"] if not m.get("slice")}
    perplexity = found["texts", "perplexity"]
    assert float(perplexity["value"]) < 400 < float(perplexity["baseline"]["value"])
    assert float(perplexity["baseline"]["pValue"]) < 0.05
    assert 0 <= float(found["verbs", "accuracy"]["value"]) <= 1
    assert found["verbs", "accuracy"]["count"] == 30
    table = stack.kubectl("get", "ej", "check")
    assert table.split("\n")[0].split() == ["NAME", "MODEL", "SUITES", "PASSED", "PROGRESS", "AGE"]
    assert table.split("\n")[1].split()[:4] == ["check", "tj/measured", "3/3", "True"]


def test_a_suite_that_cannot_be_measured_fails_alone(measured: dict[str, Any]) -> None:
    states = {suite["name"]: suite for suite in measured["suites"]}
    assert [states[name]["state"] for name in ("texts", "verbs", "nowhere")] == ["Succeeded", "Succeeded", "Failed"]
    assert "/no/such/file.txt" in states["nowhere"]["message"]


def test_what_is_kept(stack: Stack, measured: dict[str, Any]) -> None:
    folder = path_of(measured["results"]["uri"])
    assert {"results.json", "report.html", "texts.parquet", "verbs.parquet"} <= {p.name for p in folder.iterdir()}
    printed = stack.run("slipway", "report", "ej/check", "--no-open").strip()
    assert Path(printed).read_text().startswith("<!doctype html>")
    assert measured["model"]["digest"] == stack.status("measured")["model"]["digest"]


def test_a_gate_that_fails_names_itself_and_may_be_changed(stack: Stack, measured: dict[str, Any]) -> None:
    gate = [{"suite": "texts", "metric": "perplexity", "op": "<", "value": "1"}]
    stack.kubectl("patch", "ej", "check", "--type=merge", "-p", json.dumps({"spec": {"gate": gate}}))
    status = stack.wait("check", lambda s: condition(s, "Passed")[0] == "False", 30, "evaljobs")
    assert "texts/perplexity < 1" in condition(status, "Passed")[2]
    assert len(status["attempts"]) == 1, "judged anew from stored scores"


def test_the_same_is_not_computed_twice(stack: Stack, corpus: Path, rows: Path, measured: dict[str, Any]) -> None:
    again = evaluation("again", corpus, rows)
    again["spec"]["suites"] = again["spec"]["suites"][:2]
    stack.apply(again)
    status = stack.wait("again", finished, 120, "evaljobs")
    assert all(suite["cached"] for suite in status["suites"]), status
    scores = [
        {(m["suite"], m["metric"], m.get("slice", "")): m["value"] for m in one["metrics"]}
        for one in (measured, status)
    ]
    assert scores[0] == scores[1]


def test_driver_and_worker_killed(stack: Stack, corpus: Path, rows: Path, measured: dict[str, Any]) -> None:
    """SIGKILL of the driver at the first stored shard, and of a worker in the attempt that follows. In both a frozen
    worker holds a shard, so nothing can be over before."""
    job = evaluation("killed", corpus, rows, seed=5, retry={"backoffSeconds": 1})
    # Four shards for each model, and strides so short that a shard takes a second: none is gone before it is looked at.
    suite = {"name": "texts", "languageModeling": {"windowTokens": 64, "strideTokens": 8}}
    job["spec"]["suites"] = [suite | {"data": {"sources": [{"uri": corpus.as_uri()}]}}]
    job["spec"]["workers"] = {"count": 2, "resources": {"cpu": "1", "memory": "512Mi"}}

    def stored() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in stack.home.rglob("*-5/shards/*.parquet")}

    known = stack.processes("ray::EvalWorker")
    stack.apply(job)
    frozen = frozen_worker(stack, known)
    within(90, stored, "a shard")
    (driver,) = [p for p in stack.processes("-m slipway_jobs.evaluate") if "python" in p.name()][-1:]
    driver.kill()
    there = stored()
    frozen.wait(timeout=30)
    victim = frozen_worker(stack, [*known, frozen])
    within(90, lambda: len(stored()) > len(there), "another shard")
    more = stored()
    victim.kill()
    status = stack.wait("killed", finished, 120, "evaljobs")
    assert condition(status, "Succeeded")[0] == "True", status
    assert [a["outcome"] for a in status["attempts"]] == ["Infrastructure", "Succeeded"]
    assert "starting another" in stack.run("slipway", "logs", "ej/killed")
    after = stored()
    assert len(after) > len(more)
    assert all(after[path] == time for path, time in (there | more).items()), "no stored shard is scored again"
    assert len({path.parent.parent for path in after}) == 2, "one place for each model"
    assert all((path.parent.parent / "results.json").is_file() for path in after)
    assert status["suites"][0]["done"] == status["suites"][0]["examples"] == 8
    assert len(list(path_of(status["results"]["uri"]).glob("texts*.parquet"))) == 2


def frozen_worker(stack: Stack, known: list[Any]) -> Any:
    """A worker that is none of the `known`, stopped (SIGSTOP) as soon as its process is there."""

    def new() -> list[Any]:
        return [process for process in stack.processes("ray::EvalWorker") if process not in known]

    within(90, new, "a worker")
    worker = new()[0]
    worker.suspend()
    return worker


def within(seconds: float, happens: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, f"no {what} in {seconds} s"
        time.sleep(0.05)


def test_cross_validation(stack: Stack, corpus: Path, rows: Path, measured: dict[str, Any]) -> None:
    """Three folds, each a TrainJob that never sees its part and an EvalJob on that part; the mean is judged."""
    job = evaluation("folds", corpus, rows, crossValidation={"folds": 3})
    del job["spec"]["baseline"]
    job["spec"]["model"] = {"trainJob": {"name": "untaught"}}
    job["spec"]["suites"] = [{"name": "texts", "languageModeling": {"windowTokens": 64}}]
    job["spec"]["gate"] = [{"suite": "texts", "metric": "loss", "op": ">", "value": "0", "confidence": "0.95"}]
    job["spec"]["suites"][0]["metrics"] = ["loss"]
    stack.apply(job)
    status = stack.wait("folds", finished, 240, "evaljobs")
    assert condition(status, "Succeeded")[0] == "True", status
    assert condition(status, "Passed")[:2] == ("True", "GatesHold"), status
    names = [f"folds-fold-{fold}" for fold in range(3)]
    assert [fold["trainJob"] for fold in status["folds"]] == [fold["evalJob"] for fold in status["folds"]] == names
    each = [stack.status(name, "evaljobs") for name in names]
    digests = {stack.status(name)["model"]["digest"] for name in names}
    assert len(digests) == 3 and digests == {one["model"]["digest"] for one in each}, "a model of its own for each fold"
    assert sum(one["suites"][0]["examples"] for one in each) == 7, "each document is held out once"
    losses = [float(one["metrics"][0]["value"]) for one in each]
    (metric,) = status["metrics"]
    assert float(metric["value"]) == pytest.approx(statistics.fmean(losses), rel=1e-6)
    assert float(metric["standardError"]) == pytest.approx(statistics.stdev(losses) / 3**0.5, rel=1e-6)
    assert (metric["method"], metric["count"]) == ("folds", sum(one["metrics"][0]["count"] for one in each))


def test_refused_at_apply(stack: Stack, corpus: Path, rows: Path) -> None:
    bad = evaluation("bad", corpus, rows, gate=[{"suite": "texts", "metric": "bleu", "op": ">", "value": "1"}])
    assert "a metric that it computes" in stack.apply(bad, check=False)
    alone = evaluation("bad", corpus, rows)
    del alone["spec"]["baseline"]
    assert "needs spec.baseline" in stack.apply(alone, check=False)
