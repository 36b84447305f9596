"""Whole runs on a real Ray cluster: undisturbed, repeated, killed, with suites that cannot be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from slipway_api.run import EvalRunSpec, ExitCode
from slipway_jobs.evaluate.score_table import decode

from ...ray_head import RayHead  # noqa: TID252 - `tests` is no package to import from
from .conftest import Run, make_model, make_run, source, text_of, write_rows

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

WORKER = "EvalWorker"
ROWS = 160
KILLED = ("prose", "choices")  # the suites of the run that is killed


def rows() -> list[dict[str, Any]]:
    return [
        {
            "question": f"{text_of(14, seed=n)} - number {n}",
            "options": [text_of(1 + c % 2, seed=n * 5 + c) + str(c) for c in range(4)],
            "right": n % 4,
            "topic": ("animals" if n % 3 else "boxes"),
            "reference": text_of(3, seed=n),
        }
        for n in range(ROWS)
    ]


def suites(folder: Path) -> list[dict[str, Any]]:
    data = source(write_rows(folder / "rows.jsonl", rows()))
    documents = folder / "text"
    documents.mkdir(exist_ok=True)
    for number in range(24):
        (documents / f"{number:02}.txt").write_text(text_of(100 + 200 * number, seed=number))
    (folder / "poison.txt").write_text("the quick Z brown fox")
    (folder / "empty.jsonl").write_text("\n")
    no_reference = rows()[:6]
    del no_reference[4]["reference"]
    choice = {"prompt": "{question}\nAnswer:", "choicesField": "options", "answerField": "right"}
    slices = [{"field": "topic", "values": ["animals", "boxes", "stars"]}]
    return [
        {"name": "prose", "languageModeling": {"windowTokens": 64, "strideTokens": 32}, "data": source(documents)},
        {"name": "choices", "multipleChoice": choice, "data": data, "slices": slices, "fewShot": {"count": 1}},
        {
            "name": "writing",
            "generation": {
                "prompt": "{question}",
                "referenceField": "reference",
                "maxNewTokens": 8,
                "temperature": "1",
            },
            "data": {**data, "limit": 40},
        },
        {"name": "speed", "latency": {"requests": 4, "promptTokens": 8, "newTokens": 4}},
        {"name": "harness", "benchmark": {"uri": str(write_task(folder / "task"))}},
        {"name": "poisoned", "languageModeling": {}, "data": source(folder / "poison.txt")},
        {"name": "empty", "multipleChoice": choice, "data": source(folder / "empty.jsonl")},
        {
            "name": "unreferenced",
            "generation": {"prompt": "{question}", "referenceField": "reference"},
            "data": source(write_rows(folder / "unreferenced.jsonl", no_reference)),
        },
    ]


def write_task(folder: Path) -> Path:
    """A task of lm-evaluation-harness beside its data."""
    write_rows(folder / "data.jsonl", rows()[:20])
    (folder / "task.yaml").write_text(
        """
task: small
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: "{{options}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
    )
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return make_model(folder / "ours", seed=1, poison="Z", length=256), make_model(
        folder / "theirs", seed=2, length=256
    )


def spec_for(folder: Path, models: tuple[Path, Path], **changes: Any) -> EvalRunSpec:
    folder.mkdir(exist_ok=True)
    workers = {"count": 2, "resources": {"cpu": "1"}}
    return make_run(
        folder, suites(folder), models[0], **{"baseline": {"uri": str(models[1])}, "workers": workers, **changes}
    )


@pytest.fixture(scope="module")
def undisturbed(ray_head: RayHead, models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(spec_for(tmp_path_factory.mktemp("undisturbed"), models), ray_head.environment)
    assert run.wait() == ExitCode.SUCCEEDED, run.text()
    return run


def scores(run: Run, *suites: str) -> dict[str, bytes]:
    """Every file of scores of these suites (default: all but those of measured times) by its path."""
    root, found = Path(run.spec.results), {}
    listed = {suite["name"]: suite for suite in run.results()["suites"] if suite["state"] == "Succeeded"}
    for name in suites or [name for name in listed if name != "speed"]:
        for place in listed[name]["scores"].values():
            folder = Path(place.removeprefix("file://"))
            for path in sorted(folder.rglob("*.json")) + sorted(folder.rglob("*.parquet")):
                found[str(path.relative_to(root))] = path.read_bytes()
    return found


def lasting(results: dict[str, Any]) -> list[Any]:
    """The scores that two runs have in common: times differ."""
    return [metric for metric in results["metrics"] if metric["suite"] != "speed"]


def test_every_suite_ends_on_its_own(undisturbed: Run) -> None:
    results = undisturbed.results()
    states = {suite["name"]: suite for suite in results["suites"]}
    assert {name: suite["state"] for name, suite in states.items()} == {
        "prose": "Succeeded", "choices": "Succeeded", "writing": "Succeeded", "speed": "Succeeded",
        "harness": "Succeeded", "poisoned": "Failed", "empty": "Failed", "unreferenced": "Failed",
    }  # fmt: skip
    assert states["poisoned"]["reason"] == "LossNotFinite"
    assert "poison.txt" in states["poisoned"]["message"]
    assert states["empty"]["reason"] == "DataEmpty"
    assert states["unreferenced"]["reason"] == "ReferenceMissing"
    assert "unreferenced.jsonl:5" in states["unreferenced"]["message"]
    assert "slice topic=stars has no examples" in states["choices"]["message"]
    assert states["choices"]["examples"] == states["choices"]["done"] == ROWS
    assert states["writing"]["examples"] == 40
    found = {(m["suite"], m["metric"], m.get("slice", "")): m for m in results["metrics"]}
    assert found["choices", "accuracy", ""]["count"] == ROWS
    assert (found["harness", "acc", ""]["count"], states["harness"]["done"]) == (20, 20)
    assert found["choices", "accuracy", "topic=stars"]["count"] == 0
    by_topic = sum(found["choices", "accuracy", f"topic={t}"]["count"] for t in ("animals", "boxes"))
    assert by_topic == ROWS
    perplexity = found["prose", "perplexity", ""]
    difference = float(perplexity["value"]) - float(perplexity["baseline"]["value"])
    assert difference == pytest.approx(float(perplexity["baseline"]["difference"]), rel=1e-6)
    assert not [m for m in results["metrics"] if m["suite"] in ("poisoned", "empty", "unreferenced")]


def test_every_example_is_kept(undisturbed: Run) -> None:
    folder = undisturbed.store / "results"
    table = pq.read_table(folder / "choices.parquet").to_pylist()
    assert [row["index"] for row in table] == list(range(ROWS))
    assert all(len(row["log_likelihoods"]) == 4 and "Answer:" in row["prompt"] for row in table)
    theirs = decode((folder / "choices.baseline.parquet").read_bytes())
    assert [row["id"] for row in table] == [example.id for example in theirs]
    assert (folder / "report.html").is_file()


def test_the_same_again_needs_no_worker(undisturbed: Run) -> None:
    """Neither Ray nor a model: the cluster's address leads nowhere. Failed suites fail again."""
    kept = [
        suite for suite in undisturbed.spec.suites if suite.name in ("prose", "choices", "writing", "speed", "harness")
    ]
    again = undisturbed.spec.model_copy(update={"attempt": 2, "uid": "another", "suites": kept})
    again = again.model_copy(update={"storage": str(Path(again.storage).with_name("again"))})
    before = scores(undisturbed)
    run = Run(again, {"RAY_ADDRESS": "127.0.0.1:1", "PATH": "/usr/bin:/bin"})
    assert run.wait(60) == ExitCode.SUCCEEDED, run.text()
    assert lasting(run.results()) == lasting(undisturbed.results())
    assert "(stored before)" in run.text()
    assert scores(run) == before


def test_killed_anywhere_it_ends_the_same(
    ray_head: RayHead, models: tuple[Path, Path], undisturbed: Run, tmp_path: Path
) -> None:
    """The driver at the first stored shard of nine; then, in the next attempt, a worker. In both a frozen worker holds
    a shard, so the run cannot be over before."""
    spec = spec_for(tmp_path / "killed", models)
    spec = spec.model_copy(update={"suites": [suite for suite in spec.suites if suite.name in KILLED]})
    root = Path(spec.results)

    def stored() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in root.rglob("shards/*.parquet")}

    known = ray_head.actors_of(WORKER)
    first = Run(spec, ray_head.environment)
    frozen = ray_head.frozen_actor(WORKER, known)
    first.wait_until(stored, "a shard")
    first.process.kill()
    first.process.wait(timeout=10)
    there = stored()
    expected = scores(undisturbed, *KILLED)
    assert len(there) < sum(path.endswith(".parquet") for path in expected)
    assert not (first.store / "results").exists()
    frozen.wait(timeout=30)  # Ray ends the workers of a driver that is gone
    known = ray_head.actors_of(WORKER)
    second = Run(spec.model_copy(update={"attempt": 2}), ray_head.environment)
    victim = ray_head.frozen_actor(WORKER, known)
    second.wait_until(lambda: len(stored()) > len(there), "another shard")
    more = stored()
    victim.kill()
    assert second.wait() == ExitCode.SUCCEEDED, second.text()
    assert "starting another" in second.text()
    after = stored()
    assert all(after[path] == time for path, time in (there | more).items())  # not computed twice
    assert scores(second, *KILLED) == expected
    assert lasting(second.results()) == [m for m in lasting(undisturbed.results()) if m["suite"] in KILLED]
