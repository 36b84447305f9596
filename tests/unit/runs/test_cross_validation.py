"""Cross-validation: the jobs of the folds, their means, and an operator that dies between any two effects."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from scipy import stats

from slipway_api import crd
from slipway_api.evaljob import EvalJobStatus
from slipway_local.apiserver import celrules
from slipway_local.apiserver.schema import compile_schema
from slipway_local.apiserver.validation import validate
from slipway_operator.controllers.evaljob.folds import STUDENT_T, combine

from .world import MODEL, Crash, World, spec

BASE = {
    "kind": "TrainJob",
    "metadata": {"name": "base", "namespace": "team", "uid": "uid-b"},
    "spec": spec(
        data={"sources": [{"uri": "python://stdlib"}], "evalSources": [{"uri": "/held-out"}]},
        queue="theirs",
        priorityClassName="theirs",
        ttlSecondsAfterFinished=1,
    ),
}
GATE = [{"metric": "perplexity", "op": "<=", "value": "200", "confidence": "0.99"}]


def world_of(folds: int = 3, **changes: Any) -> World:
    world = World.of_evaljob(data=None, crossValidation={"folds": folds}, seed=5, **changes)
    world.train_jobs["base"] = BASE
    return world


def score(value: str, metric: str = "perplexity", **more: Any) -> dict[str, Any]:
    return {"suite": "held-out", "metric": metric, "value": value, "higherIsBetter": False, "count": 10, **more}


def set_status(job: dict[str, Any], type_: str, **more: Any) -> None:
    condition = {"type": type_, "status": "True", "reason": "Why", "message": "because"}
    job["status"] = {"conditions": [condition], "state": type_, "usage": {"workerSeconds": 7, "gpuSeconds": 1}, **more}


def train(world: World, fold: int) -> None:
    set_status(world.made_jobs["TrainJob", f"job-fold-{fold}"], "Succeeded", model=MODEL)


def measure(world: World, fold: int, value: str, suite: str = "Succeeded", **more: Any) -> None:
    suites = [{"name": "held-out", "state": suite, "examples": 4, "done": 4, **more}]
    metrics = [score(value)] if suite == "Succeeded" else []
    set_status(world.made_jobs["EvalJob", f"job-fold-{fold}"], "Succeeded", suites=suites, metrics=metrics)


def test_each_fold_trains_without_what_it_is_measured_on() -> None:
    world = world_of(queue="ours", gate=GATE)
    world.settle()
    assert world.condition("Running") == ("True", "CrossValidating")
    assert sorted(world.made_jobs) == [(k, f"job-fold-{i}") for k in ("EvalJob", "TrainJob") for i in range(3)]
    assert not world.created, "it has no run of its own"
    for fold in range(3):
        training = world.made_jobs["TrainJob", f"job-fold-{fold}"]
        evaluation = world.made_jobs["EvalJob", f"job-fold-{fold}"]
        split = {"folds": 3, "fold": fold, "seed": 5}
        assert training["spec"]["data"]["split"] == evaluation["spec"]["data"]["split"] == split
        assert training["spec"]["data"]["sources"] == evaluation["spec"]["data"]["sources"]
        assert training["spec"]["data"]["evalSources"] == []
        assert training["spec"]["training"] == BASE["spec"]["training"]
        assert evaluation["spec"]["model"] == {"trainJob": {"name": f"job-fold-{fold}"}}
        assert evaluation["spec"]["gate"] == []
        for made in (training, evaluation):
            assert made["spec"]["queue"] == "ours"
            assert "priorityClassName" not in made["spec"], "nobody runs with what somebody else was given"
            assert "ttlSecondsAfterFinished" not in made["spec"]
            assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-0"


def test_what_is_made_is_valid() -> None:
    world = world_of()
    world.settle()
    for (kind, _), made in world.made_jobs.items():
        definition = next(crd.crd(known) for known in crd.KINDS if known.kind == kind)
        node = compile_schema(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        rules = celrules.compile_rules(node)
        assert rules is not None
        assert not [*validate(made, node, ""), *celrules.evaluate(rules, made, "")]


def test_it_waits_for_the_job_that_it_copies() -> None:
    world = world_of()
    world.train_jobs.clear()
    world.settle()
    assert world.condition("Running") == ("False", "ModelNotReady")
    assert not world.made_jobs
    world.train_jobs["base"] = BASE  # it need not have been trained itself
    world.settle()
    assert len(world.made_jobs) == 6


def test_mean_and_spread_reach_status_and_the_gates() -> None:
    world = world_of(gate=GATE)
    world.settle()
    for fold, value in enumerate(("90", "100", "110")):
        train(world, fold)
        world.settle()
        assert world.job["status"]["folds"][fold]["state"] == "Pending", "trained, not measured"
        measure(world, fold, value)
        world.settle()
        assert world.job["status"]["suitesSummary"] == f"{fold + 1}/3 folds"
    assert world.condition("Succeeded") == ("True", "FoldsMeasured")
    (metric,) = world.job["status"]["metrics"]
    assert (metric["value"], metric["method"], metric["count"]) == ("100", "folds", 30)
    assert float(metric["standardError"]) == pytest.approx(10 / 3**0.5)
    high = 100 + stats.t.ppf(0.995, 2) * 10 / 3**0.5
    assert next(float(i["high"]) for i in metric["intervals"] if i["confidence"] == "0.99") == pytest.approx(high, 1e-4)
    assert world.condition("Passed") == ("True", "GatesHold")
    assert world.job["status"]["usage"] == {"workerSeconds": 42, "gpuSeconds": 6}
    assert [fold["state"] for fold in world.job["status"]["folds"]] == ["Succeeded"] * 3
    EvalJobStatus.model_validate(world.job["status"])
    world.edit(gate=[{**GATE[0], "value": "150"}])
    world.settle()
    assert world.condition("Passed") == ("False", "GatesFailed"), "three folds are not sure enough of that"


@pytest.mark.parametrize("kind", ["TrainJob", "EvalJob"])
def test_a_failed_fold_fails_it_and_stops_the_others(kind: str) -> None:
    world = world_of()
    world.settle()
    train(world, 0)
    set_status(world.made_jobs[kind, "job-fold-1"], "Failed")
    world.settle()
    assert world.condition("Failed") == ("True", "FoldFailed")
    assert f"fold 1: {kind} job-fold-1 has failed: Why: because" in world.message("Failed")
    assert world.condition("Passed") == ("False", "NotEvaluated")
    for key, made in world.made_jobs.items():
        ended = key in (("TrainJob", "job-fold-0"), (kind, "job-fold-1"))
        assert made["spec"]["suspend"] is not ended, key


def test_a_suite_that_failed_in_one_fold_has_no_mean() -> None:
    world = world_of(gate=GATE)
    world.settle()
    for fold in range(3):
        train(world, fold)
        measure(world, fold, "1", "Failed" if fold == 2 else "Succeeded", message="no such field")
    world.settle()
    assert world.condition("Succeeded")[0] == "True"
    assert world.job["status"]["metrics"] == []
    assert world.condition("Passed") == ("False", "GatesFailed")
    assert "fold 2: no such field" in world.message("Passed")


def test_suspend_stops_every_fold_and_the_queue_may_change_then() -> None:
    world = world_of(queue="one")
    world.settle()
    world.edit(suspend=True)
    world.settle()
    assert all(made["spec"]["suspend"] for made in world.made_jobs.values())
    assert world.condition("Suspended")[0] == "False"
    for made in world.made_jobs.values():
        set_status(made, "Suspended")
    world.settle()
    assert world.condition("Suspended") == ("True", "SuspendedByUser")
    world.edit(suspend=False, queue="two")
    world.settle()
    assert {(made["spec"]["suspend"], made["spec"]["queue"]) for made in world.made_jobs.values()} == {(False, "two")}
    assert world.condition("Suspended")[0] == "False"


def test_nothing_is_made_while_it_is_suspended_and_the_deadline_counts_for_all() -> None:
    world = world_of(suspend=True, activeDeadlineSeconds=100)
    world.settle()
    assert not world.made_jobs
    world.edit(suspend=False)
    world.settle()
    world.pass_time(101)
    world.settle()
    assert world.condition("Failed") == ("True", "DeadlineExceeded")
    assert all(made["spec"]["suspend"] for made in world.made_jobs.values())


def test_a_name_that_somebody_else_has_taken() -> None:
    world = world_of()
    world.made_jobs["TrainJob", "job-fold-1"] = {**BASE, "metadata": {"name": "job-fold-1", "uid": "uid-x"}}
    world.settle()
    assert world.condition("Failed") == ("True", "NameTaken")
    assert len(world.made_jobs) == 1
    assert world.made_jobs["TrainJob", "job-fold-1"]["spec"] == BASE["spec"], "it is left alone"


def test_jobs_of_a_deleted_predecessor_go_first() -> None:
    world = world_of()
    owner = {"kind": "EvalJob", "name": "job", "uid": "uid-before"}
    old = {**BASE, "metadata": {"name": "job-fold-1", "uid": "uid-x", "ownerReferences": [owner]}}
    world.made_jobs["TrainJob", "job-fold-1"] = old
    assert world.settle().requeue_after
    assert world.condition("Running") == ("False", "WaitingForResources")
    world.made_jobs.clear()
    world.settle()
    assert len(world.made_jobs) == 6


@pytest.mark.parametrize("seed", range(20))
def test_an_operator_that_dies_anywhere_ends_in_the_same_world(seed: int) -> None:
    draws = random.Random(seed)
    world = world_of(gate=GATE)

    def reconcile(times: int) -> None:
        for _ in range(times):
            with contextlib.suppress(Crash):
                world.reconcile(draws.choice([None, 0, 1, 2, 3, 5]))
            world.pass_time(1)

    reconcile(draws.randrange(1, 5))
    if draws.random() < 0.5:
        world.edit(suspend=True)
        reconcile(3)
        world.edit(suspend=False)
    reconcile(2)
    world.settle()
    assert {made["spec"]["suspend"] for made in world.made_jobs.values()} == {False}
    for fold in range(3):
        train(world, fold)
        reconcile(2)
        measure(world, fold, "10")
        reconcile(2)
    world.settle()
    assert world.condition("Passed") == ("True", "GatesHold")
    assert world.job["status"]["metrics"][0]["value"] == "10"
    assert len(world.made_jobs) == 6


# --- the arithmetic -----------------------------------------------------------------------------------------------


def test_quantiles_are_students() -> None:
    for confidence, quantiles in STUDENT_T.items():
        expected = [stats.t.ppf((1 + float(confidence)) / 2, freedom) for freedom in range(1, 20)]
        assert quantiles == pytest.approx(expected, abs=5e-5)


def test_differences_from_the_baseline_are_averaged_too() -> None:
    folds = [[score(v, baseline={"value": b, "difference": d})] for v, b, d in (("1", "2", "-1"), ("2", "5", "-3"))]
    (metric,) = combine(folds, 0)
    assert (metric["baseline"]["value"], metric["baseline"]["difference"]) == ("3.5", "-2")
    interval = next(i for i in metric["baseline"]["intervals"] if i["confidence"] == "0.95")
    assert float(interval["low"]) == pytest.approx(-2 - stats.t.ppf(0.975, 1), abs=1e-4)
    folds[1][0].pop("baseline")
    assert "baseline" not in combine(folds, 0)[0]


def test_what_is_no_number_stays_none() -> None:
    (metric,) = combine([[score("1")], [score("nan")]], 0)
    assert (metric["value"], metric.get("intervals")) == ("nan", [])


def test_a_score_that_one_fold_lacks_is_left_out() -> None:
    both = combine([[score("1"), score("2", "loss")], [score("3")]], 0)
    assert [metric["metric"] for metric in both] == ["perplexity"]
