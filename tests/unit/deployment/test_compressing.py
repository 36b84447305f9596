"""Compression before a rollout: what is started, what is waited for, what is refused, what is stopped."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_api import conditions as c
from slipway_operator.controllers.runs.attempts import COUNTED

from .compressed_world import HELD_OUT, INT8, NF4, CompressedWorld
from .world import Crash, World, evaluated, trained


def fresh(**changes: object) -> CompressedWorld:
    """A new Deployment that asks for int8Dynamic."""
    world = CompressedWorld.of(**{"compression": INT8, **changes})
    assert isinstance(world, CompressedWorld)
    world.run()
    return world


def served(**changes: object) -> CompressedWorld:
    """One whose compressed model answers."""
    world = fresh(**changes)
    world.succeed()
    world.run()
    return world


def retrained(**changes: object) -> CompressedWorld:
    """One whose TrainJob was trained again: the second compression runs."""
    world = served(**changes)
    world.train_job = trained("base", "b")
    world.run()
    world.finalize()  # the first compression's RayJob makes room
    world.run()
    return world


# --- the way of the first version ---


def test_nothing_serves_before_the_model_is_compressed() -> None:
    world = fresh()
    assert world.created == ["chat-c1"]
    assert world.ray_service is None
    assert world.condition(c.COMPRESSED) == ("False", c.COMPRESSING)
    assert world.condition(c.PROGRESSING) == ("True", c.COMPRESSING)
    assert world.condition(c.AVAILABLE) == ("False", c.NOTHING_SERVED)
    assert "is being compressed" in world.message(c.AVAILABLE)
    assert world.status is not None
    assert world.status["state"] == "Compressing"
    assert any(event.startswith("Compressing: ") for event in world.events)


def test_the_run_is_told_the_model_that_passed_the_gate() -> None:
    contract = fresh().contract()
    assert contract.kind == "deployments"
    assert contract.model.uri == "/data/base/a"
    assert contract.digest == "sha256:a"
    assert contract.compression.scheme == "int8Dynamic"
    assert contract.report is not None
    assert contract.cache == "file:///data/team/cache"


def test_its_rayjob_has_one_pod_that_is_given_what_a_replica_has_and_ray_besides() -> None:
    resources = {"cpu": "3", "memory": "2Gi", "gpu": 1}
    world = fresh(replicas={"resources": resources})
    spec = world.ray_jobs["chat-c1"]["spec"]
    assert "workerGroupSpecs" not in spec["rayClusterSpec"]
    limits = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "3", "memory": "3072Mi", "nvidia.com/gpu": 1}
    assert spec["entrypointNumGpus"] == 1
    assert spec["entrypoint"] == "python -m slipway_jobs.compress"
    own = fresh(compression=INT8 | {"resources": {"cpu": "2", "memory": "8Gi"}}).ray_jobs["chat-c1"]["spec"]
    limits = own["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "2", "memory": "9216Mi"}
    assert "entrypointNumGpus" not in own


def test_what_it_does_is_told() -> None:
    world = fresh()
    world.say("Measuring")
    world.run()
    assert "Measuring" in world.message(c.COMPRESSED)


def test_the_compressed_model_serves_and_status_has_its_figures() -> None:
    world = served()
    assert world.condition(c.COMPRESSED) == ("True", c.MODEL_COMPRESSED)
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)
    assert world.condition(c.DEGRADED) == ("False", c.AS_ASKED)
    engine = world.engine(world.stable())
    assert engine["model"] == {"uri": "/data/cache/c"}
    assert engine["digest"] == "sha256:c"
    assert engine["compression"] == "int8Dynamic"
    assert world.status is not None
    assert world.status["stable"]["compression"]["after"]["memoryBytes"] == 150
    assert world.status["stable"]["digest"] == "sha256:a"
    assert "perplexity 10 -> 10.1" in world.message(c.COMPRESSED)
    assert sum(event.startswith("ModelCompressed: ") for event in world.events) == 1


def test_without_compression_nothing_changes() -> None:
    plain, world = World.of(), CompressedWorld.of()
    plain.run()
    world.run()
    assert plain.stable() == world.stable()
    assert world.status is not None
    assert "compression" not in world.status
    assert all(condition["type"] != c.COMPRESSED for condition in world.status["conditions"])


# --- a new version while one serves ---


def test_the_stable_version_answers_while_its_successor_is_compressed() -> None:
    world = retrained()
    before = world.stable()
    assert world.created == ["chat-c1", "chat-c2"]
    assert world.weights() == {before: 100}
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)
    assert world.condition(c.PROGRESSING) == ("True", c.COMPRESSING)
    assert world.candidate() is None
    world.succeed(letter="d")
    world.run()
    assert world.stable() != before
    assert world.engine(world.stable())["model"] == {"uri": "/data/cache/d"}


def test_another_scheme_is_another_version() -> None:
    world = served()
    before = world.stable()
    world.change(compression=NF4)
    world.run()
    world.finalize()
    world.run()
    assert world.contract().compression.scheme == "nf4"
    world.succeed(letter="d")
    world.run()
    assert world.stable() != before


def test_how_it_is_measured_or_retried_makes_no_new_version() -> None:
    world = served()
    before = world.stable()
    resources = {"resources": {"memory": "1Gi"}, "retry": {"limit": 1}, "maxQualityLoss": "0.5"}
    world.change(compression=INT8 | resources | {"heldOut": HELD_OUT | {"maxTokens": 2048}})
    world.run()
    assert world.stable() == before
    assert world.created == ["chat-c1"]


def test_compression_that_is_taken_out_serves_the_model_as_it_is() -> None:
    world = served()
    world.spec.pop("compression")
    world.change()
    world.run(40)
    assert "compression" not in world.engine(world.stable())
    assert world.status is not None
    assert all(condition["type"] != c.COMPRESSED for condition in world.status["conditions"])


def test_a_limit_that_is_lowered_below_what_was_lost_is_named_and_takes_nothing_away() -> None:
    world = served()
    world.change(compression=INT8 | {"maxQualityLoss": "0.001"})
    world.run()
    assert world.condition(c.DEGRADED) == ("True", c.QUALITY_LOSS_TOO_HIGH)
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)
    assert world.created == ["chat-c1"]


# --- refused and failed ---


def test_a_result_that_lost_too_much_is_rejected_and_the_stable_version_goes_on() -> None:
    world = retrained()
    before = world.stable()
    world.end("UserError", "QualityLossTooHigh", "perplexity from 10 to 20, by 100% where 5% is allowed")
    world.run(60)
    assert world.stable() == before
    assert world.candidate() is None
    assert world.condition(c.COMPRESSED) == ("False", c.QUALITY_LOSS_TOO_HIGH)
    assert world.condition(c.DEGRADED) == ("True", c.QUALITY_LOSS_TOO_HIGH)
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)
    assert "by 100%" in world.message(c.DEGRADED)
    assert world.status is not None
    assert world.status["rejected"][0]["reason"] == c.QUALITY_LOSS_TOO_HIGH
    assert sum(event.startswith("QualityLossTooHigh: ") for event in world.events) == 1
    assert world.created == ["chat-c1", "chat-c2"]


def test_a_higher_limit_gives_a_refused_version_another_chance() -> None:
    world = retrained()
    world.end("UserError", "QualityLossTooHigh", "too much")
    world.run()
    world.change(compression=INT8 | {"maxQualityLoss": "2"})
    world.run()
    world.finalize()
    world.run()
    assert world.created[-1] == "chat-c3"
    world.succeed(letter="d", cached=True)
    world.run()
    assert world.status is not None
    assert world.status["rejected"] == []
    assert world.engine(world.stable())["digest"] == "sha256:d"


def test_a_first_version_that_cannot_be_compressed_says_so() -> None:
    world = fresh()
    world.end("UserError", "SchemeHasNoKernel", "compression.fp8: no engine here has a kernel")
    world.run(60)
    assert world.ray_service is None
    assert world.condition(c.AVAILABLE) == ("False", c.NOTHING_SERVED)
    assert world.condition(c.DEGRADED) == ("True", c.COMPRESSION_FAILED)
    assert "SchemeHasNoKernel" in world.message(c.AVAILABLE)
    assert world.created == ["chat-c1"]


def test_infrastructure_is_tried_again_after_a_pause_and_not_for_ever() -> None:
    world = fresh(compression=INT8 | {"retry": {"limit": 2, "backoffSeconds": 10}})
    for attempt in (1, 2, 3):
        assert world.created[-1] == f"chat-c{attempt}"
        world.end("Infrastructure", "StorageFailed", "the bucket does not answer")
        world.run()
        world.finalize()
        world.run(5)
        assert len(world.created) == attempt  # it waits
        world.run(40)
    assert len(world.created) == 3
    assert world.condition(c.COMPRESSED) == ("False", c.COMPRESSION_FAILED)
    assert "RetriesExhausted" in world.message(c.COMPRESSED)
    assert "the bucket does not answer" in world.message(c.COMPRESSED)


def test_out_of_memory_is_not_tried_again_with_the_same_memory() -> None:
    world = fresh()
    assert "OutOfMemory" in COUNTED
    world.end("OutOfMemory", "OutOfMemory", "model: does not fit the memory of cpu")
    world.run()
    world.finalize()
    world.run(60)
    assert world.created == ["chat-c1"]
    assert world.condition(c.COMPRESSED) == ("False", c.COMPRESSION_FAILED)
    assert "spec.compression.resources.memory" in world.message(c.COMPRESSED)


def test_without_kuberays_rayjobs_it_waits() -> None:
    world = CompressedWorld.of(compression=INT8)
    world.ray_jobs_missing = True
    world.run()
    assert world.created == []
    assert c.WAITING_FOR_RAY_OPERATOR in world.message(c.COMPRESSED)
    world.ray_jobs_missing = False
    world.run()
    assert world.created == ["chat-c1"]


# --- nobody pays for what may not serve, nor for what nobody waits for ---


@pytest.mark.parametrize(("passed", "created"), [("False", []), ("Unknown", []), ("True", ["chat-c1"])])
def test_the_gate_is_judged_before_compression_is_paid_for(passed: str, created: list[str]) -> None:
    world = CompressedWorld.of(compression=INT8, requires=[{"evalJob": {"name": "check"}}])
    world.eval_jobs = {"check": evaluated("a", passed)}
    world.run()
    assert world.created == created


def test_a_gate_that_is_lost_meanwhile_stops_it() -> None:
    world = CompressedWorld.of(compression=INT8, requires=[{"evalJob": {"name": "check"}}])
    world.eval_jobs = {"check": evaluated("a", "True")}
    world.run()
    world.eval_jobs = {"check": evaluated("a", "False")}
    world.run()
    assert world.live() == []
    assert world.condition(c.COMPRESSED) == ("False", c.COMPRESSION_STOPPED)
    world.eval_jobs = {"check": evaluated("a", "True")}
    world.finalize()
    world.run()
    assert world.live() == ["chat-c2"]


def test_a_changed_spec_supersedes_it() -> None:
    world = fresh()
    world.change(compression=NF4)
    world.run()
    assert world.live() == []  # the first is being stopped, and nothing runs beside it
    assert world.created == ["chat-c1"]
    world.finalize()
    world.run()
    assert world.live() == ["chat-c2"]
    assert world.contract().compression.scheme == "nf4"
    assert [record["number"] for record in world.compression()["attempts"]] == [2]


def test_a_late_report_of_what_was_superseded_is_not_believed() -> None:
    world = fresh()
    world.change(compression=NF4)
    world.succeed(letter="x")  # the first one ends just now
    world.run()
    world.finalize()
    world.run()
    assert world.ray_service is None
    assert world.live() == ["chat-c2"]


def test_suspend_stops_it_and_resuming_begins_again() -> None:
    world = fresh()
    world.change(suspend=True)
    world.run()
    assert world.live() == []
    assert [record["outcome"] for record in world.compression()["attempts"]] == ["Suspended"]
    world.finalize()
    world.change(suspend=False)
    world.run()
    assert world.live() == ["chat-c2"]
    world.succeed()
    world.run()
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)


def test_a_model_that_is_what_already_serves_stops_it() -> None:
    world = retrained()
    world.train_job = trained("base", "a")
    world.run()
    assert world.live() == []
    assert world.condition(c.PROGRESSING) == ("False", c.STABLE)
    assert world.condition(c.COMPRESSED) == ("True", c.MODEL_COMPRESSED)


def test_a_deployment_that_is_deleted_starts_nothing() -> None:
    world = CompressedWorld.of(compression=INT8)
    world.deleted = True
    world.run()
    assert world.created == []


# --- never twice, never a wrong one ---


def test_a_result_is_remembered_while_its_version_waits() -> None:
    world = retrained(canary={"steps": [{"weight": 10, "pauseSeconds": 3600}]})
    world.succeed(letter="d")
    world.run()
    assert world.candidate() is not None
    world.change(requires=[{"evalJob": {"name": "check"}}])  # not there: the candidate is withdrawn
    world.run()
    assert world.candidate() is None
    world.change(requires=[])
    world.run(60)
    assert world.candidate() is not None
    assert world.created == ["chat-c1", "chat-c2"]


def test_another_version_of_the_same_weights_has_them_compared_with_their_digest() -> None:
    world = served()
    before = world.stable()
    world.change(engine={"transformers": {"maxBatch": 3}})
    world.run()
    world.finalize()
    world.run()
    assert world.created == ["chat-c1", "chat-c2"]
    world.succeed(cached=True)
    world.run()
    assert world.stable() != before
    assert "(made before)" in world.message(c.COMPRESSED)


def test_numbers_are_never_given_twice() -> None:
    world = served()
    for scheme in (NF4, INT8 | {"emulate": True}, NF4):
        world.change(compression=scheme)
        world.run()
        world.finalize()
        world.run()
    assert world.created == ["chat-c1", "chat-c2", "chat-c3", "chat-c4"]
    assert len(set(world.created)) == 4


def test_the_operator_may_die_at_any_moment() -> None:
    """Whatever was done of a look, the next one does the rest, and the world ends the same."""
    for dies_after in range(6):
        world = CompressedWorld.of(compression=INT8)
        for _ in range(2):
            with contextlib.suppress(Crash):
                world.step(dies_after=dies_after)
        world.run()
        assert world.created == ["chat-c1"]
        world.succeed()
        with contextlib.suppress(Crash):
            world.step(dies_after=dies_after)
        world.run()
        assert world.condition(c.AVAILABLE) == ("True", c.SERVING), dies_after
        assert world.created == ["chat-c1"]


def test_a_rayjob_of_a_crashed_look_is_not_taken_for_another_compression() -> None:
    world = CompressedWorld.of(compression=INT8)
    with pytest.raises(Crash):
        world.step(dies_after=2)  # Secret and RayJob are there, status is not
    assert world.created == ["chat-c1"]
    world.change(compression=NF4)
    world.run()
    assert world.live() == []
    world.finalize()
    world.run()
    assert world.contract().compression.scheme == "nf4"
    assert world.created == ["chat-c1", "chat-c2"]


def test_a_foreign_rayjob_of_the_name_is_told() -> None:
    world = CompressedWorld.of(compression=INT8)
    world.foreign_ray_job = {"metadata": {"name": "chat-c1", "namespace": "team"}}
    world.run()
    assert world.created == []
    assert world.condition(c.COMPRESSED) == ("False", c.COMPRESSION_FAILED)
    assert "NameTaken" in world.message(c.COMPRESSED)


SCHEMES = (INT8, NF4, {"fp8": {}, "heldOut": HELD_OUT})
ACTIONS = st.sampled_from(
    ["look", "die", "succeed", "fail", "refuse", "stop", "finalize", "wait", "suspend", "resume", "train", "scheme"]
)


@settings(max_examples=25)
@given(st.lists(st.tuples(ACTIONS, st.integers(0, 5)), max_size=20))
def test_whatever_happens_one_run_at_a_time_and_in_the_end_what_is_asked_for_serves(
    story: list[tuple[str, int]],
) -> None:
    world = CompressedWorld.of(compression=INT8)
    for action, number in story:
        act(world, action, number)
        assert len(world.live()) <= 1
    assert len(set(world.created)) == len(world.created)
    world.change(suspend=False, compression=INT8 | {"retry": {"limit": 50}, "calibration": None})
    world.run()
    for _ in range(4):
        world.finalize()
        world.run(660, every=330)  # longer than any pause
        if world.live():
            world.succeed()
            world.run()
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)
    assert world.condition(c.COMPRESSED) == ("True", c.MODEL_COMPRESSED)
    assert world.engine(world.stable())["compression"] == "int8Dynamic"


def act(world: CompressedWorld, action: str, number: int) -> None:
    """One thing that happens. What is said of a run is said by one that lives."""
    if action == "die":
        with contextlib.suppress(Crash):
            world.step(dies_after=number)
    elif action == "finalize":
        world.finalize()
    elif action == "wait":
        world.now += timedelta(seconds=10**number)
    elif action in ("suspend", "resume"):
        world.change(suspend=action == "suspend")
    elif action == "train":
        world.train_job = trained("base", "abcdef"[number])
    elif action == "scheme":
        world.change(compression=SCHEMES[number % 3])
    elif action == "look" or not world.live():
        world.step()
    elif action == "succeed":
        world.succeed(letter="uvwxyz"[number])
    elif action == "stop":
        world.end("Preempted", "Stopped", "the node goes away")
    elif action == "fail":
        world.end("Infrastructure", "StorageFailed", "no answer")
    else:
        world.end("UserError", "QualityLossTooHigh", "too much")
