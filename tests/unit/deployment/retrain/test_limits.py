"""What holds retrains back: each refusal is visible, and no flood of alarms gets past it."""

from __future__ import annotations

import itertools
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from slipway_api import conditions as c
from slipway_operator.controllers.runs.attempts import format_time, parse_time

from .world import TEMPLATE, RetrainWorld, template

FREE = {"cooldownSeconds": 0, "maxPerDay": 100}


def refused(world: RetrainWorld, reason: str) -> str:
    """The refusal stands in status, in the condition and in an Event; its message."""
    message: str = world.retrain()["refusedMessage"]
    assert world.retrain()["refused"] == reason
    assert world.condition(c.RETRAINING) == ("False", reason)
    assert world.message(c.RETRAINING) == message
    assert any(event.startswith(f"{reason}: ") for event in world.events)
    return message


def reject_one(world: RetrainWorld) -> None:
    """The retrain at work trains and is not better."""
    world.run()
    world.trains("x")
    world.run()
    world.measures(passed=False)
    world.run()


def test_nothing_is_told_of_retrains_where_none_is_asked_for() -> None:
    world = RetrainWorld(spec=RetrainWorld._full({}))
    world.run()
    assert world.status is not None
    assert "retrain" not in world.status
    assert all(one["type"] != c.RETRAINING for one in world.status["conditions"])


def test_without_an_alarm_nothing_begins() -> None:
    world = RetrainWorld.drifting()
    world.run(86400 * 2, every=7200)
    assert world.created == []
    assert world.condition(c.RETRAINING) == ("False", c.NO_RETRAIN)


def test_on_drift_false_looks_at_no_alarm() -> None:
    world = RetrainWorld.drifting({"onDrift": False})
    world.alarm()
    world.run(3600, every=600)
    assert world.created == []


def test_an_alarm_within_the_cooldown_waits_for_its_end_if_it_is_still_drifted() -> None:
    world = RetrainWorld.drifting({"cooldownSeconds": 7200, "maxPerDay": 9})
    world.alarm()
    world.to_promotion()
    ended = parse_time(world.last()["ended"])
    world.alarm("alarm-2")
    world.run()
    message = refused(world, c.COOLING_DOWN)
    assert f"from {format_time(ended + timedelta(hours=2))} on" in message
    assert "alarm-2" in message
    world.now = ended + timedelta(seconds=7199)
    world.run()
    assert len(world.train_jobs()) == 1
    world.now += timedelta(seconds=1)
    world.run()
    assert len(world.train_jobs()) == 2


def test_an_alarm_whose_signal_came_back_during_the_cooldown_is_settled() -> None:
    world = RetrainWorld.drifting({"cooldownSeconds": 7200, "maxPerDay": 9})
    world.alarm()
    world.to_promotion()
    world.alarm("alarm-2")
    world.run()
    world.calm()
    world.run(86400, every=3600)
    assert len(world.train_jobs()) == 1
    assert world.retrain()["refused"] == c.NO_LONGER_DRIFTED
    assert "alarm-2" in world.retrain()["handledAlarms"]
    assert any(event.startswith(c.NO_LONGER_DRIFTED) for event in world.events)


def test_alarms_of_a_version_that_no_longer_answers_are_settled() -> None:
    world = RetrainWorld.drifting(FREE)
    world.alarm(version="v-before")
    world.run(3600, every=600)
    assert world.created == []
    assert world.retrain()["handledAlarms"] == ["alarm-1"]
    assert world.retrain()["refused"] == c.OTHER_VERSION
    assert any("of version v-before" in event for event in world.events)


def test_alarms_that_came_while_it_trained_are_answered_when_it_has_taken_over() -> None:
    world = RetrainWorld.drifting(FREE)
    world.alarm()
    world.run()
    world.alarm("alarm-2", "output-length")
    world.run()
    assert world.retrain()["refused"] == c.RETRAIN_IN_FLIGHT
    assert world.condition(c.RETRAINING) == ("True", c.TRAINING)
    assert len(world.train_jobs()) == 1
    world.to_promotion()
    world.run(86400, every=3600)
    assert len(world.train_jobs()) == 1, "they spoke of the version before"


def test_max_per_day_counts_a_sliding_day() -> None:
    world = RetrainWorld.drifting({"cooldownSeconds": 0, "maxPerDay": 2, "maxFailures": 100})
    first = world.now
    for number in range(3):
        world.alarm(f"alarm-{number}")
        if number < 2:
            reject_one(world)
            world.now += timedelta(hours=2)  # the back-off after two that came to nothing
        world.run()
    message = refused(world, c.DAILY_LIMIT)
    assert "maxPerDay is 2" in message
    assert len(world.train_jobs()) == 2
    world.now = first + timedelta(hours=24) + timedelta(seconds=1)
    world.run()
    assert len(world.train_jobs()) == 3


def test_the_budget_holds_over_thirty_days_and_ends_one_that_reaches_it() -> None:
    world = RetrainWorld.drifting(FREE | {"gpuHoursBudget": "3", "maxFailures": 100})
    world.alarm()
    reject_one(world)  # 2 workers of 1 CPU for an hour
    assert world.last()["gpuHours"] == "2"
    world.now += timedelta(hours=1)
    world.alarm("alarm-2")
    world.run()
    job = world.job("TrainJob")
    job["status"] = {"attempts": [{"number": 1, "startTime": format_time(world.now)}]}
    world.now += timedelta(minutes=29)
    world.run()
    assert world.stage() == "Training"
    assert world.decision is not None
    assert world.decision.requeue_after is not None
    assert world.decision.requeue_after <= 61, "it comes back when the budget will be used up"
    world.now += timedelta(minutes=1)
    world.run()
    assert (world.last()["stage"], world.last()["reason"]) == ("Failed", c.BUDGET_SPENT)
    assert world.last()["gpuHours"] == "1"
    assert job["spec"]["suspend"] is True, "it is stopped"
    world.alarm("alarm-3")
    world.now += timedelta(days=3)
    world.run()
    assert "have used 3 hours" in refused(world, c.BUDGET_SPENT)
    world.now += timedelta(days=28)
    world.run()
    assert len(world.train_jobs()) == 3


def test_gpus_are_what_is_counted_where_there_are_any() -> None:
    world = RetrainWorld.drifting(FREE)
    world.template = template(workers={"count": 4, "resources": {"cpu": "8", "gpu": 1}})
    world.alarm()
    world.run()
    world.trains()
    world.job("TrainJob")["status"]["usage"] = {"workerSeconds": 14400, "gpuSeconds": 7200}
    world.run()
    world.measures(False)
    world.job("EvalJob")["status"]["usage"] = {"workerSeconds": 0, "gpuSeconds": 3600}
    world.run()
    assert world.last()["gpuHours"] == "3"


def test_a_retrain_that_keeps_failing_backs_off_gives_up_and_says_so() -> None:
    world = RetrainWorld.drifting(FREE | {"maxFailures": 3, "cooldownSeconds": 600})
    world.alarm()
    world.run()
    for failures, pause in ((1, 600), (2, 1200)):
        world.fails()
        world.run()
        assert world.retrain()["failures"] == failures
        assert "no such data" in world.last()["message"]
        refused(world, c.COOLING_DOWN)
        world.now += timedelta(seconds=pause - 1)
        world.run()
        assert len(world.train_jobs()) == failures
        world.now += timedelta(seconds=1)
        world.run()
        assert len(world.train_jobs()) == failures + 1, "the same alarm, in another TrainJob"
    world.fails()
    world.run(86400 * 40, every=43200)
    assert len(world.train_jobs()) == 3
    assert "3 retrains in a row came to nothing" in refused(world, c.GAVE_UP)
    assert "no such data" in world.message(c.RETRAINING)
    world.edit_retrain(steps=50)
    world.run()
    assert len(world.train_jobs()) == 4, "the spec was changed"


def test_without_a_cooldown_failures_still_back_off() -> None:
    world = RetrainWorld.drifting(FREE | {"maxFailures": 100})
    world.alarm()
    world.run()
    for _ in range(6):
        world.fails()
        world.run()
        world.now += timedelta(hours=1)
        world.run()
    assert world.retrain()["failures"] == 6
    assert len(world.train_jobs()) == 7
    world.fails()
    world.run(3600, every=60)
    assert len(world.train_jobs()) == 7, "64 minutes after the seventh"


# --- what stands against it ---------------------------------------------------------------------------------------


def stand_no_template(world: RetrainWorld) -> None:
    world.template = None


def stand_nothing_held_out(world: RetrainWorld) -> None:
    world.template = template(data={"sources": [{"uri": "/corpus"}]})


def stand_too_many_sources(world: RetrainWorld) -> None:
    sources = [{"uri": f"/corpus/{number}"} for number in range(32)]
    world.template = template(data=TEMPLATE["data"] | {"sources": sources})


def stand_no_examples(world: RetrainWorld) -> None:
    assert world.status is not None
    world.status["drift"].pop("snapshot")


def stand_rollout(world: RetrainWorld) -> None:
    world.change(canary={"steps": [{"weight": 50, "pauseSeconds": 9000}]}, engine={"transformers": {"maxBatch": 2}})


def stand_requirement(world: RetrainWorld) -> None:
    world.change(requires=[{"evalJob": {"name": "gone"}}])


@pytest.mark.parametrize(
    ("stand", "reason", "words"),
    [
        (stand_no_template, c.TEMPLATE_UNFIT, "TrainJob base does not exist"),
        (stand_nothing_held_out, c.TEMPLATE_UNFIT, "data.evalSources or data.split"),
        (stand_too_many_sources, c.TEMPLATE_UNFIT, "33 sources"),
        (stand_no_examples, c.NO_EXAMPLES, "spec.capture.content"),
        (stand_rollout, c.ROLLOUT_UNDER_WAY, "v-"),
        (stand_requirement, c.REQUIREMENT_MISSING, "EvalJobs gone"),
    ],
)
def test_what_is_missing_is_told_and_nothing_is_made(stand: Any, reason: str, words: str) -> None:
    world = RetrainWorld.drifting(FREE)
    world.alarm()
    stand(world)
    world.run()
    assert words in refused(world, reason)
    assert world.created == []


@pytest.mark.parametrize("kind", ["TrainJob", "EvalJob"])
def test_a_name_that_somebody_else_has_ends_it(kind: str) -> None:
    world = RetrainWorld.drifting(FREE)
    world.alarm()
    world.step()
    run = world.retrain()["current"]["id"]
    world.strangers = [{"kind": kind, "metadata": {"name": run}}]
    world.run()
    if kind == "EvalJob":
        world.trains()
        world.run()
    assert (world.last()["stage"], world.last()["reason"]) == ("Failed", c.NAME_TAKEN)
    assert f"{kind} {run}" in world.last()["message"]


def test_a_job_that_somebody_deletes_ends_it_and_is_not_made_again() -> None:
    world = RetrainWorld.drifting(FREE)
    world.alarm()
    world.run()
    world.jobs.clear()
    world.run()
    assert world.last()["stage"] == "Failed"
    assert "was deleted while it trained" in world.last()["message"]


@pytest.mark.parametrize("kind", ["TrainJob", "EvalJob"])
def test_a_job_that_the_server_refuses_ends_the_retrain_and_nothing_else(kind: str) -> None:
    world = RetrainWorld.drifting(FREE)
    world.alarm()
    world.step()
    run = world.retrain()["current"]["id"]
    if kind == "EvalJob":
        world.run()
        world.trains()
        world.step()
    world.refusals = {run: "exceeded quota"}
    world.run()
    assert world.last()["stage"] == "Failed"
    assert f"{kind} {run} is refused: exceeded quota" in world.last()["message"]
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)


def test_an_evaluation_of_another_model_counts_for_nothing() -> None:
    world = RetrainWorld.drifting(FREE)
    world.alarm()
    world.run()
    world.trains()
    world.run()
    world.measures()
    world.job("EvalJob")["status"]["model"] = {"uri": "/m/other", "digest": "sha256:other"}
    world.run()
    assert world.last()["stage"] == "Failed"
    assert "measured /m/other" in world.last()["message"]


# --- an attacker --------------------------------------------------------------------------------------------------


def test_a_week_of_flooded_alarms_costs_no_more_than_the_limits_allow() -> None:
    """Somebody sends one pattern over and over: a new alarm every twenty minutes, of ever other signals."""
    limits = {"cooldownSeconds": 3 * 3600, "maxPerDay": 3, "gpuHoursBudget": "20", "maxFailures": 100}
    world = RetrainWorld.drifting(limits)
    begun, seen = [], set()
    for tick in range(7 * 24 * 3):
        world.now += timedelta(minutes=20)
        world.alarm(f"alarm-{tick}", f"signal-{tick % 60}")
        world.step()
        world.step()
        if len(world.train_jobs()) > len(begun):
            begun.append(world.now)
        current = world.retrain().get("current")
        if current is not None and current["stage"] == "Training" and tick % 3 == 0:
            world.trains(f"m{tick}", seconds=0)
            world.job("TrainJob")["status"]["usage"] = {"workerSeconds": 4 * 3600}
        elif current is not None and current["stage"] == "Evaluating":
            world.step()
            world.measures(passed=tick % 2 == 0)
        if current is None:
            seen.add(world.retrain()["refused"])
            assert world.retrain()["refusedMessage"]
            assert world.condition(c.RETRAINING)[0] == "False"
    assert len(begun) >= 3, "the flood does reach retrains"
    for number, start in enumerate(begun):
        assert sum(start <= other < start + timedelta(days=1) for other in begun[number:]) <= limits["maxPerDay"]
    assert all(later - earlier >= timedelta(hours=3) for earlier, later in itertools.pairwise(begun))
    used = sum(Decimal(one["hours"]) for one in world.retrain()["usage"])
    assert 20 <= used < 24, "the last one began below the budget; it was four hours long in one blink"
    assert len(begun) == 5, "and so five of four hours"
    assert seen >= {c.COOLING_DOWN, c.BUDGET_SPENT}
    assert len(world.retrain()["handledAlarms"]) <= 64
    assert len(world.jobs) <= 2 * 20


def test_jobs_of_retrains_that_are_forgotten_are_deleted_but_not_those_of_what_serves() -> None:
    world = RetrainWorld.drifting(FREE | {"maxFailures": 100})
    world.alarm()
    world.to_promotion()
    serving = world.last()["id"]
    for number in range(25):
        world.alarm(f"later-{number}")
        world.run()
        world.fails()
        world.run()
        world.calm()
        world.now += timedelta(days=40)
        world.run()
    history = [run["id"] for run in world.retrain()["history"]]
    assert len(history) == 20
    assert serving in history
    assert {name for _, name in world.jobs} == set(history)
