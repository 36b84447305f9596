"""The decisions about a Deployment, one situation each."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from slipway_api import conditions as c
from slipway_operator.controllers.deployment.analysis import Tally
from slipway_operator.controllers.deployment.rollout import ABORT, DRAIN_SECONDS, PROMOTE

from .world import Crash, World, evaluated, trained

STEPS = {"steps": [{"weight": 10, "pauseSeconds": 30}, {"weight": 50, "pauseSeconds": 60}]}


def served(**changes: object) -> World:
    """A Deployment that serves TrainJob base's model."""
    world = World.of(**changes)
    world.run()
    return world


def rolling(**changes: object) -> World:
    """A Deployment whose TrainJob has just been trained again."""
    world = served(canary=STEPS, **changes)
    world.train_job = trained("base", "b")
    world.run()
    return world


# --- first service ---


def test_the_first_version_takes_all_requests() -> None:
    world = served()
    assert world.weights() == {world.stable(): 100}
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)
    assert world.condition(c.PROGRESSING) == ("False", c.STABLE)
    assert world.condition(c.DEGRADED) == ("False", c.AS_ASKED)
    assert world.status is not None
    assert world.status["url"] == "http://chat-serve-svc.team.svc:8000"


def test_while_it_starts_it_says_so() -> None:
    world = World.of()
    world.step()
    world.states = dict.fromkeys(world.applications(), ("DEPLOYING", ""))
    world.run()
    assert world.condition(c.AVAILABLE) == ("False", c.DEPLOYING)
    assert world.condition(c.PROGRESSING) == ("True", c.DEPLOYING)


@pytest.mark.parametrize("part", ["router", "model"])
def test_what_is_changed_in_place_goes_on_answering(part: str) -> None:
    """New weights and replica numbers make Serve say DEPLOYING for a moment; a Ray that begins anew does, too."""
    world = served()
    changed = "router" if part == "router" else world.stable()
    world.states[changed] = ("DEPLOYING", "")
    world.run()
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)
    world.endpoints = False
    world.run()
    assert world.condition(c.AVAILABLE) == ("False", c.DEPLOYING)
    world.endpoints = True
    world.run()
    assert world.condition(c.AVAILABLE) == ("False", c.DEPLOYING), "the router is back before the model"
    del world.states[changed]
    world.run()
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)


def test_the_url_that_the_runner_writes_is_believed() -> None:
    world = served()
    assert world.ray_service is not None
    world.ray_service["metadata"]["annotations"]["slipway.dev/url"] = "http://127.0.0.1:9/team/chat"
    world.run()
    assert world.status is not None
    assert world.status["url"] == "http://127.0.0.1:9/team/chat"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (None, "TrainJob base does not exist"),
        ({"metadata": {}, "status": {}}, "TrainJob base has not succeeded yet"),
        (trained("base", "a", failed=True), "TrainJob base has failed"),
    ],
)
def test_without_a_model_nothing_is_served_and_it_says_why(job: dict[str, object] | None, words: str) -> None:
    world = World.of()
    world.train_job = job
    world.run()
    assert world.ray_service is None
    assert world.condition(c.AVAILABLE) == ("False", c.NOTHING_SERVED)
    assert words in world.message(c.AVAILABLE)


def test_without_kuberay_it_waits() -> None:
    world = World.of()
    world.missing = True
    world.run()
    assert world.ray_service is None
    assert world.condition(c.AVAILABLE) == ("False", c.WAITING_FOR_RAY_OPERATOR)
    world.missing = False
    world.run()
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)


def test_a_foreign_rayservice_of_the_same_name_is_left_alone() -> None:
    world = World.of()
    world.foreign = True
    world.run()
    assert world.ray_service is None
    assert world.condition(c.AVAILABLE) == ("False", c.NAME_TAKEN)


def test_a_broken_model_is_named_and_a_mended_one_replaces_it_at_once() -> None:
    world = served(canary=STEPS)
    broken = world.stable()
    world.states[broken] = ("DEPLOY_FAILED", "ModelDigestMismatch: files have changed")
    world.run()
    assert world.condition(c.AVAILABLE) == ("False", c.UNHEALTHY)
    assert world.condition(c.DEGRADED) == ("True", c.UNHEALTHY)
    assert "ModelDigestMismatch" in world.message(c.AVAILABLE)
    world.train_job = trained("base", "b")
    world.run()
    assert world.stable() != broken
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)


# --- gate ---


def test_a_model_that_has_not_passed_does_not_serve() -> None:
    world = World.of(requires=[{"evalJob": {"name": "check"}}])
    world.run()
    assert world.condition(c.GATE_PASSED) == ("Unknown", c.EVALUATION_PENDING)
    assert world.ray_service is None
    world.eval_jobs = {"check": evaluated("a", "False", "held-out/perplexity 99 > 10")}
    world.run()
    assert world.condition(c.GATE_PASSED) == ("False", c.EVALUATION_NOT_PASSED)
    assert "99 > 10" in world.message(c.GATE_PASSED)
    assert world.ray_service is None
    world.eval_jobs = {"check": evaluated("a", "True")}
    world.run()
    assert world.condition(c.GATE_PASSED) == ("True", c.REQUIREMENTS_HOLD)
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)


def test_scores_of_another_model_do_not_count() -> None:
    world = World.of(requires=[{"evalJob": {"name": "check"}}])
    world.eval_jobs = {"check": evaluated("z", "True")}
    world.run()
    assert world.condition(c.GATE_PASSED) == ("False", c.OTHER_MODEL_EVALUATED)
    assert world.ray_service is None


def test_a_cross_validation_is_refused_with_what_to_do() -> None:
    world = World.of(requires=[{"evalJob": {"name": "cv"}}])
    world.eval_jobs = {"cv": {"spec": {"crossValidation": {"folds": 3}}, "status": evaluated("a", "True")["status"]}}
    world.eval_jobs["cv"]["status"].pop("model")
    world.run()
    assert world.condition(c.GATE_PASSED) == ("False", c.EVALUATION_OF_NO_MODEL)
    assert "Name an EvalJob whose spec.model is this model" in world.message(c.GATE_PASSED)
    assert world.condition(c.AVAILABLE) == ("False", c.NOTHING_SERVED)


def test_a_gate_that_fails_after_the_model_was_served_is_told_and_harms_nobody() -> None:
    world = World.of(requires=[{"evalJob": {"name": "check"}}])
    world.eval_jobs = {"check": evaluated("a", "True")}
    world.run()
    weights = world.weights()
    world.eval_jobs = {"check": evaluated("a", "False")}
    world.run()
    assert world.weights() == weights
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)
    assert world.condition(c.DEGRADED) == ("True", c.GATE_NOT_PASSED)


def test_a_new_model_waits_for_its_evaluation_while_the_old_one_answers() -> None:
    world = World.of(requires=[{"evalJob": {"name": "check"}}], canary=STEPS)
    world.eval_jobs = {"check": evaluated("a", "True")}
    world.run()
    old = world.stable()
    world.train_job = trained("base", "b")
    world.run()
    assert world.candidate() is None
    assert world.condition(c.GATE_PASSED) == ("False", c.OTHER_MODEL_EVALUATED)
    world.eval_jobs = {"check": evaluated("b", "True")}
    world.run()
    assert world.candidate() is not None
    world.eval_jobs = {"check": evaluated("b", "False")}
    world.run()
    assert world.candidate() is None
    assert world.stable() == old
    assert world.weights()[old] == 100


# --- canary ---


def test_a_canary_goes_through_its_steps_and_takes_over() -> None:
    world = rolling()
    old, new = world.stable(), world.candidate()
    assert new is not None
    assert world.weights() == {old: 90, new: 10}
    assert world.status is not None
    assert world.status["weights"] == "90/10"
    world.run(31)
    assert world.weights() == {old: 50, new: 50}
    world.run(61)
    assert world.stable() == new
    assert world.candidate() is None
    assert world.weights() == {new: 100, old: 0}  # the old one ends what it is answering
    world.run(DRAIN_SECONDS + 1)
    assert world.applications() == ["router", new]
    assert world.condition(c.PROGRESSING) == ("False", c.STABLE)


def test_the_version_that_answers_is_not_restarted_by_a_rollout() -> None:
    """Ray gives a new code version to every deployment of an application whose args or import path change."""
    world = rolling()

    def fixed(name: str) -> tuple[object, object]:
        app = next(a for a in world.config()["applications"] if a["name"] == name)
        return app["args"], app["import_path"]

    old = world.stable()
    before = fixed("router"), fixed(old)
    world.run(45)
    world.change(limits={"requestsPerMinute": 10}, generation={"maxTokens": 7})
    world.run()
    assert (fixed("router"), fixed(old)) == before
    router = world.config()["applications"][0]["deployments"][0]["user_config"]
    assert (router["requestsPerMinute"], router["defaultMaxTokens"]) == (10, 7)


def test_the_router_is_told_of_a_version_while_it_may_answer() -> None:
    """Each change of its settings takes Serve's router out of the proxy for a moment: none while a candidate loads."""
    world = served(canary=STEPS)
    world.train_job = trained("base", "b")
    told = [world.weights()]
    old = world.stable()
    for _ in range(200):
        world.run(1)
        if world.weights() != told[-1]:
            told.append(world.weights())
    new = world.stable()
    assert told == [{old: 100}, {old: 90, new: 10}, {old: 50, new: 50}, {new: 100, old: 0}, {new: 100}]


def test_replicas_follow_the_weights_and_never_need_more_than_one_pod_on_top() -> None:
    world = served(replicas={"min": 1, "max": 4}, canary=STEPS)
    assert world.ray_service is not None
    pods = world.ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"]
    assert pods == 5
    world.train_job = trained("base", "b")
    for _ in range(40):
        world.run(5, every=5)
        most = 0
        for app in world.config()["applications"][1:]:
            deployment = app["deployments"][0]
            most += deployment.get("num_replicas") or deployment["autoscaling_config"]["max_replicas"]
        assert most <= pods
        assert world.ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"] == pods


def test_a_step_waits_for_its_requests() -> None:
    world = served(canary={"steps": [{"weight": 50, "pauseSeconds": 1, "minRequests": 20}]})
    world.train_job = trained("base", "b")
    world.run(60)
    new = world.candidate()
    assert new is not None
    assert "20 requests" in world.message(c.PROGRESSING)
    world.tallies[new] = Tally(20, 0)
    world.run(1)
    assert world.stable() == new


@pytest.mark.parametrize(
    ("state", "reason"), [("DEPLOY_FAILED", c.CANDIDATE_FAILED), ("UNHEALTHY", c.CANDIDATE_FAILED)]
)
def test_a_candidate_that_breaks_is_rolled_back_and_not_tried_again(state: str, reason: str) -> None:
    world = rolling()
    old, new = world.stable(), world.candidate()
    assert new is not None
    world.states[new] = (state, "CUDA out of memory")
    world.run()
    assert world.stable() == old
    assert world.candidate() is None
    assert world.weights() == {old: 100, new: 0}
    assert world.status is not None
    assert world.status["rejected"][0]["reason"] == reason
    world.run(DRAIN_SECONDS + 300)
    assert world.applications() == ["router", old]
    assert world.condition(c.DEGRADED) == ("True", c.ROLLED_BACK)
    assert "CUDA out of memory" in world.message(c.DEGRADED)
    assert [event for event in world.events if event.startswith(c.ROLLED_BACK)].__len__() == 1
    world.train_job = trained("base", "c")  # a third model
    world.run()
    assert world.candidate() not in (None, new)


def test_a_candidate_that_is_never_ready_is_rolled_back_in_time() -> None:
    world = served(canary={**STEPS, "progressDeadlineSeconds": 60})
    old = world.stable()
    world.train_job = trained("base", "b")
    world.step()
    new = world.candidate()
    assert new is not None
    world.states[new] = ("DEPLOYING", "waiting for resources")
    world.run(59)
    assert world.candidate() == new
    assert world.weights() == {old: 100}, "the router is not told of it before it is ready"
    world.run(2)
    assert world.candidate() is None
    assert world.status is not None
    assert world.status["rejected"][0]["reason"] == c.CANDIDATE_NOT_READY
    assert "waiting for resources" in world.status["rejected"][0]["message"]


def test_a_candidate_that_answers_errors_is_rolled_back() -> None:
    world, draws = rolling(), random.Random(0)
    old, new = world.stable(), world.candidate()
    assert new is not None
    sent = 0
    while world.candidate() == new and sent < 1000:
        world.traffic(draws, 10, {new: 0.5})
        sent += 10
        world.run()
    assert world.stable() == old
    assert world.status is not None
    assert world.status["rejected"][0]["reason"] == c.ERROR_RATE_TOO_HIGH
    assert world.tallies[new].requests < 40


def test_a_candidate_whose_answers_are_disliked_is_rolled_back() -> None:
    world = rolling()
    old, new = world.stable(), world.candidate()
    assert new is not None
    world.tallies = {old: Tally(400, 0, judged=100, bad=10), new: Tally(100, 0, judged=40, bad=30)}
    world.run()
    assert world.stable() == old
    assert world.status is not None
    assert world.status["rejected"][0]["reason"] == c.QUALITY_TOO_LOW
    assert world.candidate() is None


def test_a_candidate_as_good_as_the_stable_version_takes_over_under_traffic() -> None:
    world, draws = rolling(), random.Random(0)
    new = world.candidate()
    assert new is not None
    for _ in range(100):
        world.traffic(draws, 20, dict.fromkeys(world.weights(), 0.02))
        world.run(1)
    assert world.stable() == new


def test_paused_stays_and_goes_on() -> None:
    world = rolling()
    new = world.candidate()
    world.change(canary={**STEPS, "paused": True})
    world.run(600, every=30)
    assert world.candidate() == new
    assert world.condition(c.PROGRESSING) == ("True", c.CANARY_PAUSED)
    world.change(canary=STEPS)
    world.run(120)
    assert world.stable() == new


def test_promote_and_abort_by_hand() -> None:
    world = rolling()
    new = world.candidate()
    assert new is not None
    world.annotations[PROMOTE] = "v-somethingelse"
    world.run()
    assert world.candidate() == new
    world.annotations[PROMOTE] = new
    world.run()
    assert world.stable() == new
    world = rolling()
    old, new = world.stable(), world.candidate()
    assert new is not None
    world.annotations[ABORT] = new
    world.run()
    assert world.stable() == old
    assert world.status is not None
    assert world.status["rejected"][0]["reason"] == c.ABORTED


def test_taking_the_change_back_withdraws_the_candidate_without_blame() -> None:
    world = rolling()
    old, new = world.stable(), world.candidate()
    assert new is not None
    world.train_job = trained("base", "a")
    world.run()
    assert world.weights() == {old: 100, new: 0}
    assert world.status is not None
    assert world.status["rejected"] == []
    world.train_job = trained("base", "b")  # and again: it joins once its predecessor has drained
    world.run()
    assert world.candidate() is None
    world.run(DRAIN_SECONDS + 1)
    assert world.candidate() == new


def test_a_third_model_replaces_the_candidate() -> None:
    world = rolling()
    old, second = world.stable(), world.candidate()
    world.train_job = trained("base", "c")
    world.run(DRAIN_SECONDS + 2)
    assert world.candidate() not in (None, second)
    assert world.stable() == old


def test_suspend_frees_everything_and_resume_serves_the_stable_version_again() -> None:
    world = rolling()
    old = world.stable()
    world.change(suspend=True)
    world.run()
    assert world.ray_service is None
    assert world.condition(c.AVAILABLE) == ("False", c.SUSPENDED_BY_USER)
    world.change(suspend=False)
    world.run()
    assert world.stable() == old
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)


def test_a_deployment_that_is_being_deleted_is_left_to_the_collector() -> None:
    world = served()
    observed = world.observe()
    observed.deployment["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    from slipway_operator.controllers.deployment.decide import decide  # noqa: PLC0415

    from .world import SETTINGS  # noqa: PLC0415

    decision = decide(observed, SETTINGS, world.now)
    assert not decision.apply
    assert not decision.delete


def test_at_rest_nothing_is_written() -> None:
    world = served(canary=STEPS)
    world.now += timedelta(hours=1)
    before = world.status
    decision = world.step()
    assert not decision.apply
    assert not decision.events
    assert decision.status == before
    assert decision.requeue_after is None


# --- crashes ---


@pytest.mark.parametrize("seed", range(20))
def test_an_operator_that_dies_anywhere_ends_in_the_same_world(seed: int) -> None:
    calm, wild, draws = rolling(), served(canary=STEPS), random.Random(seed)
    wild.train_job = trained("base", "b")
    end = calm.now + timedelta(seconds=200)
    calm.run(200)
    while wild.now < end:
        try:
            wild.step(dies_after=draws.choice([None, None, 0, 1, 2]))
        except Crash:
            continue
        wild.now += timedelta(seconds=1)
        assert sum(wild.weights().values()) == 100
    wild.run()
    assert wild.config() == calm.config()
    assert wild.stable() == calm.stable()
