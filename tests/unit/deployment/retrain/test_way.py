"""The way of a retrain: what is made of an alarm, what ends it, and what serves then."""

from __future__ import annotations

from typing import Any

import pytest

from slipway_api import conditions as c

from .world import SNAPSHOT, RetrainWorld, template, trained


def test_an_alarm_ends_as_the_version_that_serves() -> None:
    world = RetrainWorld.drifting(canary={"steps": [{"weight": 20, "pauseSeconds": 10}]})
    before = world.stable()
    world.alarm()
    world.run()
    assert world.condition(c.RETRAINING) == ("True", c.TRAINING)
    run = world.retrain()["current"]["id"]
    assert world.created == [f"TrainJob/{run}"]
    world.trains()
    world.run()
    assert world.created == [f"TrainJob/{run}", f"EvalJob/{run}"]
    assert world.condition(c.RETRAINING) == ("True", c.EVALUATING)
    assert world.candidate() is None, "nothing is rolled out before it was measured"
    world.measures()
    world.run()
    assert world.condition(c.RETRAINING) == ("True", c.ROLLING_OUT)
    assert world.weights() == {before: 80, world.candidate(): 20}, "by the ordinary canary"
    world.run(60)
    last = world.last()
    assert (last["stage"], last["version"], last["alarm"]) == ("Promoted", world.stable(), "alarm-1")
    assert world.stable() != before
    assert "perplexity on new data 8 against 12" in last["message"]
    assert world.retrain()["model"] == "/m/b"
    assert world.condition(c.RETRAINING) == ("False", c.PROMOTED)
    assert world.status is not None
    assert world.status["stable"]["reference"] == {"uri": "/m/b"}
    assert world.status["stable"]["source"] == f"trainjob/{run}"
    world.run(86400 * 3, every=7200)
    assert len(world.created) == 2, "one alarm, one retrain"


def test_the_jobs_say_what_is_learned_and_measured() -> None:
    world = RetrainWorld.drifting({"steps": 7, "data": {"sources": [{"uri": "/faq"}], "replayRatio": "0.25"}})
    world.alarm()
    world.run()
    job = world.job("TrainJob")
    assert job["metadata"]["ownerReferences"][0]["uid"] == "uid-0"
    assert job["metadata"]["labels"]["slipway.dev/retrain"] == job["metadata"]["name"]
    spec = job["spec"]
    assert spec["model"] == {"uri": "/m/a"}
    assert "tokenizer" not in spec
    assert "ttlSecondsAfterFinished" not in spec, "else it might be gone before its end was seen"
    assert spec["queue"] == "team-a"
    assert "priorityClassName" not in spec, "its author's right, not the Deployment's author's"
    assert spec["suspend"] is False, "the template may be one that never runs"
    assert spec["training"]["steps"] == 7
    captured, faq, replayed = spec["data"]["sources"]
    assert (captured["uri"], captured["format"]) == ("/storage/snapshot-1/train", "parquet")
    assert faq["uri"] == "/faq"
    assert replayed["uri"] == "/corpus"
    assert replayed["sample"]["fraction"] == "0.25"
    assert [one["uri"] for one in spec["data"]["evalSources"]] == ["/storage/snapshot-1/held-out", "/corpus-held-out"]
    world.trains()
    world.run()
    measured = world.job("EvalJob")["spec"]
    assert measured["model"] == {"trainJob": {"name": job["metadata"]["name"]}}
    assert measured["baseline"] == {"uri": "/m/a"}
    assert measured["workers"]["count"] == 1
    new, old = measured["suites"]
    assert [one["uri"] for one in new["data"]["sources"]] == ["/storage/snapshot-1/held-out"]
    assert [one["uri"] for one in old["data"]["sources"]] == ["/corpus-held-out"]
    better, kept = measured["gate"]
    assert better == {"suite": "new", "metric": "loss", "notWorseThan": "baseline", "confidence": "0.95"}
    assert kept["margin"] == "0.048790", "a loss higher by ln 1.05 is a perplexity higher by 5 %"


def test_the_margin_on_old_data_is_the_one_that_was_asked_for() -> None:
    world = RetrainWorld.drifting({"oldMargin": "0.2"})
    world.alarm()
    world.run()
    world.trains()
    world.run()
    assert world.job("EvalJob")["spec"]["gate"][1]["margin"] == "0.182322", "ln 1.2"


def test_a_template_with_a_split_keeps_what_it_held_out() -> None:
    split = {"evalFraction": "0.1", "seed": 3}
    world = RetrainWorld.drifting()
    world.template = template(data={"sources": [{"uri": "/corpus"}], "split": split})
    world.alarm()
    world.run()
    data = world.job("TrainJob")["spec"]["data"]
    assert data["split"] == split
    assert data["evalSources"] == []
    world.trains()
    world.run()
    old = world.job("EvalJob")["spec"]["suites"][1]["data"]
    assert (old["sources"][0]["uri"], old["split"]) == ("/corpus", split)


def test_without_captured_examples_a_part_of_the_sources_is_what_is_new() -> None:
    world = RetrainWorld.drifting({"data": {"captured": False, "sources": [{"uri": "/fresh"}], "replayRatio": "0"}})
    world.alarm(snapshot=None)
    world.run()
    data = world.job("TrainJob")["spec"]["data"]
    assert [one["uri"] for one in data["sources"]] == ["/fresh"]
    world.trains()
    world.run()
    new, old = (suite["data"] for suite in world.job("EvalJob")["spec"]["suites"])
    assert (new["sources"][0]["uri"], new["split"]) == ("/fresh", data["split"])
    assert old["sources"][0]["uri"] == "/corpus-held-out"


def test_a_sample_of_the_template_is_sampled_again_within_itself() -> None:
    world = RetrainWorld.drifting({"data": {"replayRatio": "5e-1"}})
    world.template = template(
        data={
            "sources": [{"uri": "/corpus", "sample": {"fraction": "0.2", "seed": 9}}],
            "evalSources": [{"uri": "/held-out"}],
        }
    )
    world.alarm()
    world.run()
    assert world.job("TrainJob")["spec"]["data"]["sources"][-1]["sample"] == {"fraction": "0.1", "seed": 9}


@pytest.mark.parametrize(("passed", "difference"), [(False, "-0.7"), (True, "0")])
def test_what_is_not_better_is_recorded_and_not_rolled_out(passed: bool, difference: str) -> None:
    world = RetrainWorld.drifting()
    before = world.stable()
    world.alarm()
    world.run()
    world.trains()
    world.run()
    world.measures(passed, difference=difference)
    world.run(60)
    assert (world.last()["stage"], world.last()["reason"]) == ("Rejected", c.NOT_BETTER)
    assert "perplexity on new data 8 against 12" in world.last()["message"]
    assert world.stable() == before
    assert world.candidate() is None
    assert world.condition(c.RETRAINING) == ("False", c.NOT_BETTER)
    world.run(86400 * 3, every=7200)
    assert len(world.train_jobs()) == 1, "the same alarm is not tried again"


def test_a_candidate_that_is_rolled_back_leaves_the_model_before_it() -> None:
    world = RetrainWorld.drifting({"cooldownSeconds": 0, "maxPerDay": 9})
    world.alarm()
    world.to_promotion("b")
    second = world.stable()
    world.alarm("alarm-2")
    world.run()
    world.trains("c")
    world.run()
    world.measures()
    world.states[world_version(world)] = ("DEPLOY_FAILED", "no memory")
    world.run(90)
    assert (world.last()["stage"], world.last()["reason"]) == ("Rejected", c.ROLLED_BACK)
    assert "no memory" in world.last()["message"]
    assert world.stable() == second, "that of the retrain before, not that of spec.model"
    assert world.retrain()["model"] == "/m/b"
    world.run(60)
    assert world.stable() == second


def world_version(world: RetrainWorld) -> str:
    """The version that the measured model becomes."""
    world.step()
    return str(world.retrain()["current"]["version"])


# --- the user's word ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["Training", "Evaluating", "RollingOut"])
def test_a_changed_model_supersedes_what_is_at_work(stage: str) -> None:
    world = RetrainWorld.drifting(canary={"steps": [{"weight": 20, "pauseSeconds": 900}]})
    world.alarm()
    world.run()
    if stage != "Training":
        world.trains()
        world.run()
    if stage == "RollingOut":
        world.measures()
        world.run()
    assert world.stage() == stage
    world.change(model={"uri": "/m/users"}, canary={"steps": []})
    world.run(120)
    assert (world.last()["stage"], world.last()["reason"]) == ("Superseded", c.SUPERSEDED)
    assert stage in world.last()["message"]
    assert "model" not in world.retrain()
    assert world.status is not None
    assert world.status["stable"]["reference"] == {"uri": "/m/users"}
    going = [job for job in world.jobs.values() if "status" not in job]
    assert all(job["spec"]["suspend"] for job in going), "what still ran is stopped"


def test_a_changed_model_replaces_a_retrained_one_and_the_same_spec_does_not() -> None:
    world = RetrainWorld.drifting()
    world.alarm()
    world.to_promotion()
    world.change(limits={"requestsPerMinute": 5})
    world.run(60)
    assert world.retrain()["model"] == "/m/b", "the model was not what was changed"
    world.change(model={"uri": "/m/users"})
    world.run(60)
    assert "model" not in world.retrain()
    assert world.status is not None
    assert world.status["stable"]["reference"] == {"uri": "/m/users"}


def test_a_train_job_that_is_trained_again_is_the_users_word_and_one_that_is_deleted_says_nothing() -> None:
    world = RetrainWorld.drifting(model={"trainJob": {"name": "base"}})
    world.alarm()
    world.to_promotion()
    world.train_job = None
    world.run(60)
    assert world.retrain()["model"] == "/m/b"
    assert world.condition(c.PROGRESSING) == ("False", c.STABLE), "what serves needs no TrainJob any more"
    world.train_job = trained("base", "z")
    world.run(60)
    assert "model" not in world.retrain()
    assert world.status is not None
    assert world.status["stable"]["reference"] == {"uri": "/data/base/z"}


def test_retrain_taken_out_stops_what_is_at_work_and_keeps_what_serves() -> None:
    world = RetrainWorld.drifting({"cooldownSeconds": 0, "maxPerDay": 9})
    world.alarm()
    world.to_promotion()
    world.alarm("alarm-2")
    world.run()
    assert world.stage() == "Training"
    running = world.job("TrainJob")
    world.change(drift=None)
    world.run(60)
    assert world.last()["stage"] == "Superseded"
    assert running["spec"]["suspend"] is True
    assert world.status is not None
    assert world.status["stable"]["reference"] == {"uri": "/m/b"}


def test_suspend_stops_the_jobs_and_they_go_on_with_the_deployment() -> None:
    world = RetrainWorld.drifting()
    world.alarm()
    world.run()
    world.change(suspend=True)
    world.run()
    assert world.job("TrainJob")["spec"]["suspend"] is True
    assert world.condition(c.RETRAINING) == ("False", c.SUSPENDED_BY_USER)
    world.change(suspend=False)
    world.run()
    assert world.job("TrainJob")["spec"]["suspend"] is False
    assert world.condition(c.RETRAINING) == ("True", c.TRAINING)


def test_approval_is_waited_for_and_names_the_retrain() -> None:
    world = RetrainWorld.drifting({"approval": "manual"})
    world.alarm()
    world.run(7200, every=600)
    assert world.created == []
    assert world.condition(c.RETRAINING) == ("False", c.AWAITING_APPROVAL)
    run = world.retrain()["current"]["id"]
    assert run in world.message(c.RETRAINING)
    world.annotations["slipway.dev/approve-retrain"] = "another"
    world.run()
    assert world.created == []
    world.annotations["slipway.dev/approve-retrain"] = run
    world.run()
    assert world.created == [f"TrainJob/{run}"]
    assert world.retrain()["current"]["snapshot"]["digest"] == SNAPSHOT["digest"]


@pytest.mark.parametrize("approval", ["manual", "automatic"])
def test_a_person_may_end_it(approval: str) -> None:
    world = RetrainWorld.drifting({"approval": approval})
    world.alarm()
    world.run()
    world.annotations["slipway.dev/abort-retrain"] = world.retrain()["current"]["id"]
    world.run(60)
    assert (world.last()["stage"], world.last()["reason"]) == ("Rejected", c.ABORTED)
    assert all(job["spec"]["suspend"] for job in world.jobs.values())


# --- requirements -------------------------------------------------------------------------------------------------


def safety() -> dict[str, Any]:
    spec = {
        "model": {"uri": "/m/a"},
        "suites": [{"name": "safe", "languageModeling": {}, "data": {"sources": [{"uri": "/safe"}]}}],
        "gate": [{"metric": "perplexity", "op": "<", "value": "99"}],
    }
    passed = [{"type": "Passed", "status": "True", "reason": "X", "message": "fine"}]
    return {"kind": "EvalJob", "spec": spec, "status": {"conditions": passed, "model": {"uri": "/m/a", "digest": ""}}}


def world_with_requirement(**changes: Any) -> RetrainWorld:
    world = RetrainWorld.drifting()
    world.eval_jobs = {"safety": safety()}
    world.change(requires=[{"evalJob": {"name": "safety"}}], **changes)
    world.run()
    return world


@pytest.mark.parametrize("passes", [True, False])
def test_what_the_deployment_requires_is_asked_of_the_new_model(passes: bool) -> None:
    world = world_with_requirement()
    before = world.stable()
    world.alarm()
    world.run()
    world.trains()
    world.run()
    run = world.retrain()["current"]["id"]
    copied = world.job("EvalJob", f"{run}-q0")
    assert copied["spec"]["model"] == {"trainJob": {"name": run}}
    assert copied["spec"]["suites"][0]["name"] == "safe"
    world.measures()
    world.run()
    assert world.stage() == "Evaluating", "it waits for both"
    world.measures(passes, name=f"{run}-q0")
    world.run(60)
    assert (world.stable() != before) == passes
    assert world.last()["stage"] == ("Promoted" if passes else "Rejected")
    assert world.condition(c.GATE_PASSED) == ("True", c.REQUIREMENTS_HOLD)
    if passes:
        assert f"retrain {run} has passed copies of EvalJobs safety" in world.message(c.GATE_PASSED)


def test_a_requirement_that_was_added_later_holds_for_a_retrained_model_too() -> None:
    world = RetrainWorld.drifting()
    world.alarm()
    world.to_promotion()
    world.eval_jobs = {"safety": safety()}
    world.change(requires=[{"evalJob": {"name": "safety"}}])
    world.run(60)
    assert world.condition(c.GATE_PASSED) == ("False", c.OTHER_MODEL_EVALUATED)
