"""EvalJob on the ladder: what is particular to it. The rest is the same ladder as a TrainJob's."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest

from slipway_api.run import EvalRunSpec

from .world import MODEL, Crash, World

TRAINED = {"status": {"model": MODEL, "conditions": [{"type": "Succeeded", "status": "True"}]}}
FAILED = {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}
GATE = [{"metric": "perplexity", "op": "<=", "value": "200"}]
RESULTS = {"uri": "/data/results", "report": "/data/results/report.html", "digest": "sha256:r"}
END = {"outcome": "Succeeded", "reason": "ResultsSaved", "message": "saved", "results": RESULTS}


def score(value: str, suite: str = "held-out") -> dict[str, Any]:
    return {"suite": suite, "metric": "perplexity", "value": value, "higherIsBetter": False, "count": 99}


def evaluation(*metrics: dict[str, Any], done: int = 5, state: str = "Succeeded", **suite: Any) -> dict[str, Any]:
    return {
        "progress": {"done": done, "total": 10, "suite": "held-out"},
        "suites": [{"name": "held-out", "state": state, "examples": 10, "done": done, **suite}],
        "metrics": list(metrics),
        "model": {"uri": MODEL["uri"], "digest": MODEL["digest"], "parameters": 7},
    }


def started(**changes: Any) -> World:
    world = World.of_evaljob(**changes)
    world.train_jobs["base"] = TRAINED
    world.settle()
    return world


def ended(value: str, **changes: Any) -> World:
    world = started(**changes)
    world.say("Ended", evaluation=evaluation(score(value), done=10), end=END)
    world.settle()
    return world


def run_of(world: World) -> EvalRunSpec:
    head = world.newest()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return EvalRunSpec.model_validate_json(next(e["value"] for e in head["env"] if e["name"] == "SLIPWAY_RUN"))


def test_it_waits_for_its_model_and_measures_where_that_is() -> None:
    world = World.of_evaljob(gate=GATE)
    world.settle()
    assert world.condition("Running") == ("False", "ModelNotReady")
    assert "spec.model.trainJob: TrainJob base does not exist" in world.message("Running")
    assert world.condition("Passed") == ("Unknown", "NotEvaluated")
    world.train_jobs["base"] = TRAINED
    world.settle()
    run = run_of(world)
    assert run.model.uri == MODEL["uri"]
    assert run.confidences == ["0.95"]
    assert run.results == "file:///data/team/eval"
    assert run.storage == "file:///data/team/evaljob/job/uid-0"
    assert world.job["status"]["modelName"] == "tj/base"
    assert world.created == ["job-e1"]
    assert world.newest()["spec"]["entrypoint"] == "python -m slipway_jobs.evaluate"
    assert world.newest()["metadata"]["labels"]["slipway.dev/evaljob"] == "job"
    assert world.newest()["metadata"]["ownerReferences"][0]["kind"] == "EvalJob"


def test_a_model_that_will_never_be_fails_it() -> None:
    world = World.of_evaljob(baseline={"trainJob": {"name": "old"}})
    world.train_jobs = {"base": TRAINED, "old": FAILED}
    world.settle()
    assert world.condition("Failed") == ("True", "ModelNotReady")
    assert "spec.baseline.trainJob: TrainJob old has failed" in world.message("Failed")
    assert world.condition("Passed") == ("False", "NotEvaluated")


def test_gates_ask_for_their_confidences() -> None:
    gates = [{"metric": "perplexity", "op": "<", "value": "9", "confidence": level} for level in ("0.99", "0.9")]
    assert run_of(started(gate=gates)).confidences == ["0.9", "0.95", "0.99"]


def test_progress_and_scores_reach_status_while_it_runs() -> None:
    world = started()
    world.ray_status(jobStatus="RUNNING", jobDeploymentStatus="Running")
    world.say("Evaluating", evaluation=evaluation(state="Running"))
    world.settle()
    assert world.condition("Running") == ("True", "Evaluating")
    assert world.job["status"]["progress"]["summary"] == "5/10"
    assert world.job["status"]["suitesSummary"] == "0/1"
    assert world.job["status"]["model"]["digest"] == MODEL["digest"]


@pytest.mark.parametrize(("value", "status", "reason"), [("150", "True", "GatesHold"), ("250", "False", "GatesFailed")])
def test_the_end_brings_the_verdict(value: str, status: str, reason: str) -> None:
    world = ended(value, gate=GATE)
    assert world.condition("Succeeded") == ("True", "ResultsSaved")
    assert world.condition("Passed") == (status, reason)
    assert f"perplexity <= 200: it is {value}" in world.message("Passed")
    assert world.job["status"]["results"] == RESULTS
    assert world.job["status"]["suitesSummary"] == "1/1"


def test_a_changed_gate_is_judged_anew_without_a_new_run() -> None:
    world = ended("250", gate=GATE)
    created = list(world.created)
    world.edit(gate=[{"metric": "perplexity", "op": "<=", "value": "300"}])
    world.settle()
    assert world.condition("Passed") == ("True", "GatesHold")
    assert world.condition("Succeeded")[0] == "True"
    assert world.created == created
    world.edit(gate=[])
    world.settle()
    assert world.condition("Passed") == ("True", "NoGates")
    assert world.job["status"]["gates"] == []


def test_a_suite_that_failed_fails_its_gate() -> None:
    world = started(gate=GATE)
    failed = evaluation(state="Failed", reason="DataNotFound", message="no such file")
    world.say("Ended", evaluation=failed, end=END)
    world.settle()
    assert world.condition("Succeeded")[0] == "True"
    assert world.condition("Passed") == ("False", "GatesFailed")
    assert "suite held-out failed: no such file" in world.message("Passed")


def test_success_without_results_is_not_believed() -> None:
    world = started()
    world.say("Ended", evaluation=evaluation(score("1")), end={k: v for k, v in END.items() if k != "results"})
    world.settle()
    assert world.outcomes() == ["Infrastructure"]


def test_out_of_memory_halves_the_batches_down_to_a_floor() -> None:
    world = started(batchTokens=300, retry={"limit": 9, "backoffSeconds": 0})
    tokens = []
    for _ in range(5):
        if world.condition("Failed")[0] == "True":
            break
        tokens.append(run_of(world).batch_tokens)
        world.say("Ended", end={"outcome": "OutOfMemory", "reason": "OutOfMemory", "message": "oom"})
        world.settle()
        world.finalize()
        world.settle()
    assert tokens == [300, 150, 75]
    assert world.condition("Failed") == ("True", "OutOfMemory")


def test_suspend_and_resume() -> None:
    world = started()
    world.edit(suspend=True)
    world.settle()
    world.finalize()
    world.settle()
    assert world.condition("Suspended") == ("True", "SuspendedByUser")
    world.edit(suspend=False)
    world.settle()
    assert world.created == ["job-e1", "job-e2"]


def test_more_workers_than_any_pool_has() -> None:
    world = started(workers={"count": 64})
    assert world.condition("Failed") == ("True", "DoesNotFit")
    assert not world.created


@pytest.mark.parametrize("seed", range(30))
def test_an_operator_that_dies_anywhere_ends_in_the_same_world(seed: int) -> None:
    draws = random.Random(seed)
    world = World.of_evaljob(gate=GATE, retry={"limit": 50, "backoffSeconds": 0})
    world.train_jobs["base"] = TRAINED

    def reconcile(times: int) -> None:
        for _ in range(times):
            with contextlib.suppress(Crash):
                world.reconcile(draws.choice([None, 0, 1, 2, 3]))
            world.pass_time(1)

    reconcile(6)
    world.settle()
    for _ in range(draws.randrange(3)):
        world.ray_status(jobStatus="FAILED", jobDeploymentStatus="Failed", message="killed")
        reconcile(4)
        for _ in range(3):  # what failed is deleted, and the next one made
            world.settle()
            world.finalize()
            world.pass_time(700)
            world.settle()
    world.say("Ended", evaluation=evaluation(score("9"), done=10), end=END)
    reconcile(3)
    world.settle()
    assert world.condition("Passed") == ("True", "GatesHold")
    assert len(set(world.created)) == len(world.created)
    assert {one["type"] for one in world.job["status"]["conditions"]} == {
        "Suspended",
        "Running",
        "Succeeded",
        "Failed",
        "Passed",
    }
    assert json.dumps(world.job["status"])
