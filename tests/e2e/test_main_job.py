"""The main job, from a manifest to a trained model, and what a user sees on the way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import Stack, condition, finished, train_job

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def done(stack: Stack, corpus: Path) -> dict[str, Any]:
    stack.apply(train_job("main", corpus))
    return stack.finish("main")


def test_kubectl_wait_and_columns(stack: Stack, done: dict[str, Any]) -> None:
    stack.kubectl("wait", "--for=condition=Succeeded", "trainjob/main", "--timeout=10s")
    table = stack.kubectl("get", "tj")
    assert "STATE" in table
    assert "20/20" in table
    assert "Succeeded" in table


def test_status_says_what_really_ran(done: dict[str, Any]) -> None:
    plan = done["plan"]
    assert plan["strategy"].startswith("fsdp(shard=2")
    assert (plan["worldSize"], plan["backend"]) == (2, "gloo")
    assert plan["parametersPerRank"] == pytest.approx(plan["parameters"] / 2, rel=0.02)
    assert done["progress"]["step"] == done["progress"]["steps"] == 20
    assert done["attempts"][0]["outcome"] == "Succeeded"
    assert done["usage"]["workerSeconds"] > 0
    assert float(done["model"]["perplexity"]) < float(done["model"]["initialPerplexity"])


def test_the_model_directory_is_complete_and_says_where_it_comes_from(stack: Stack, done: dict[str, Any]) -> None:
    model = Path(done["model"]["uri"].removeprefix("file://"))
    assert {"config.json", "tokenizer.json", "slipway.json"} <= {p.name for p in model.iterdir()}
    lineage = json.loads((model / "slipway.json").read_text())
    assert done["plan"]["dataDigest"] in json.dumps(lineage)


def test_logs_and_history_stay(stack: Stack, done: dict[str, Any]) -> None:
    assert "step" in stack.run("slipway", "logs", "tj/main")
    history = stack.storage(done) / "metrics" / "attempt-0001.jsonl"
    steps = [json.loads(line)["step"] for line in history.read_text().splitlines() if "loss" in line]
    assert 20 in steps


def test_events_tell_the_story(stack: Stack, done: dict[str, Any]) -> None:
    described = stack.kubectl("describe", "trainjob", "main")
    _, _, events = described.partition("Events:")
    assert "Succeeded" in events
    assert "attempt 1: saved" in events


def test_generate(stack: Stack, done: dict[str, Any]) -> None:
    text = stack.run("slipway", "generate", "tj/main", "--prompt", "Node 1 ", "--max-new-tokens", "8", "--greedy")
    assert text.strip()


def test_the_token_is_nowhere_but_in_its_secret(stack: Stack, done: dict[str, Any]) -> None:
    key = next(stack.home.rglob("*report*key*"))
    from slipway_api.run import report_token  # noqa: PLC0415

    token = report_token(key.read_bytes().strip(), stack.get("main")["metadata"]["uid"], 1)
    logs = [p for folder in ("logs", "ray") for p in (stack.home / folder).rglob("*") if p.is_file()]
    logs += list(stack.storage(done).rglob("*.log"))
    assert logs
    assert not [p for p in logs if token.encode() in p.read_bytes()]
    assert token not in stack.kubectl("get", "rayjobs", "-o", "json")


def test_delete_stops_the_run_and_frees_everything(stack: Stack, corpus: Path) -> None:
    """The job after it (below) could not start if anything were still held: it needs the whole machine, too."""
    stack.apply(train_job("gone", corpus, training={"steps": 100000, "globalBatchSize": 8, "microBatchSize": 2}))
    stack.wait("gone", lambda s: s.get("progress", {}).get("step", 0) >= 1)
    assert stack.processes("slipway_jobs.train")
    stack.kubectl("delete", "trainjob", "gone", "--wait=true", timeout=60)
    deadline = time.monotonic() + 30
    while left := left_of(stack, "gone"):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def left_of(stack: Stack, name: str) -> list[str]:
    """Processes of any run, and objects of that job."""
    found = [str(p) for words in ("slipway_jobs.train", "TrainWorker") for p in stack.processes(words)]
    return found + [line for line in stack.kubectl("get", "rayjobs,secrets").splitlines() if f"{name}-1" in line]


@pytest.fixture(scope="module")
def further(stack: Stack, corpus: Path, done: dict[str, Any]) -> dict[str, Any]:
    """Trained from another TrainJob's model, and deleted some seconds after its end."""
    job = train_job("further", corpus, model={"trainJob": {"name": "main"}})
    del job["spec"]["tokenizer"]
    job["spec"]["training"] |= {"steps": 2}
    job["spec"]["ttlSecondsAfterFinished"] = 5
    stack.apply(job)
    return stack.finish("further")


def test_train_further_from_another_trainjob(further: dict[str, Any], done: dict[str, Any]) -> None:
    assert float(further["model"]["initialPerplexity"]) == pytest.approx(float(done["model"]["perplexity"]), rel=0.01)


def test_ttl_deletes_the_object_and_keeps_the_model(stack: Stack, further: dict[str, Any]) -> None:
    stack.kubectl("wait", "--for=delete", "trainjob/further", "--timeout=60s")
    assert (Path(further["model"]["uri"].removeprefix("file://")) / "slipway.json").exists()


def test_deadline(stack: Stack, corpus: Path) -> None:
    job = train_job("late", corpus, training={"steps": 100000, "globalBatchSize": 8, "microBatchSize": 2})
    job["spec"]["activeDeadlineSeconds"] = 2
    stack.apply(job)
    status = stack.wait("late", finished, timeout=60)
    assert condition(status, "Failed")[1] == "DeadlineExceeded"
    stack.wait("late", lambda _: "late-1" not in stack.kubectl("get", "rayjobs"), timeout=60)
