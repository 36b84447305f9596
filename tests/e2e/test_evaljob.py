"""An evaluation from a manifest to its verdict: a gate that holds, one that does not, and nothing computed twice."""

from __future__ import annotations

import json
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


def test_refused_at_apply(stack: Stack, corpus: Path, rows: Path) -> None:
    bad = evaluation("bad", corpus, rows, gate=[{"suite": "texts", "metric": "bleu", "op": ">", "value": "1"}])
    assert "a metric that it computes" in stack.apply(bad, check=False)
    alone = evaluation("bad", corpus, rows)
    del alone["spec"]["baseline"]
    assert "needs spec.baseline" in stack.apply(alone, check=False)
