"""The ladder, rung by rung."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slipway_api.run import RunSpec
from slipway_api.trainjob import Retry, TrainJobSpec
from slipway_operator.controllers.runs.attempts import backoff
from slipway_operator.controllers.trainjob.memory import replan_after_out_of_memory

from .world import MODEL, SUCCESS, World, exit_message, spec


def started(**changes: Any) -> World:
    world = World.of(**changes)
    world.settle()
    world.ray_status(jobStatus="RUNNING", jobDeploymentStatus="Running")
    world.settle()
    return world


def run_of(world: World) -> RunSpec:
    container = world.newest()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return RunSpec.model_validate(json.loads(next(e["value"] for e in container["env"] if e["name"] == "SLIPWAY_RUN")))


def test_a_new_job_gets_one_rayjob_and_one_secret() -> None:
    world = World.of()
    world.settle()
    assert sorted(world.children) == [("RayJob", "job-1"), ("Secret", "job-1-run")]
    assert world.condition("Planned") == ("True", "Fits")
    assert world.condition("Running") == ("False", "WaitingForResources")
    assert world.condition("Succeeded") == ("False", "InProgress")
    assert world.job["status"]["state"] == "WaitingForResources"
    assert world.job["status"]["observedGeneration"] == 1


def test_the_run_contract_is_complete_and_the_token_is_only_in_the_secret() -> None:
    world = World.of()
    world.settle()
    run = run_of(world)
    assert (run.namespace, run.name, run.uid, run.attempt) == ("team", "job", "uid-0", 1)
    assert run.storage == "file:///data/team/trainjob/job/uid-0"
    assert run.training.to_wire() == world.job["spec"]["training"]
    token = world.children["Secret", "job-1-run"]["stringData"]["report-token"]
    assert len(token) == 64
    assert token not in json.dumps(world.newest())


def test_progress_reaches_status() -> None:
    world = started()
    assert world.condition("Running") == ("True", "Starting")
    world.say("Training", progress={"step": 20, "steps": 100, "loss": "3.1"}, resumedFromStep=10)
    world.settle()
    assert world.condition("Running") == ("True", "Training")
    assert world.job["status"]["progress"]["summary"] == "20/100"
    assert world.job["status"]["attempts"][0]["resumedFromStep"] == 10


def test_success_keeps_the_rayjob() -> None:
    world = started()
    world.say("Ended", end=SUCCESS)
    world.settle()
    assert world.condition("Succeeded") == ("True", "ModelSaved")
    assert world.condition("Failed")[0] == "False"
    assert world.job["status"]["model"] == MODEL
    assert sorted(world.children) == [("RayJob", "job-1"), ("Secret", "job-1-run")]
    assert not world.newest()["metadata"].get("deletionTimestamp")


def test_a_user_error_ends_the_job_at_once_with_its_own_reason() -> None:
    world = started()
    world.say("Ended", end={"outcome": "UserError", "reason": "DataNotFound", "message": "data.sources[0].uri: no"})
    world.settle()
    assert world.condition("Failed") == ("True", "DataNotFound")
    assert world.message("Failed") == "data.sources[0].uri: no"
    assert world.created == ["job-1"]


@pytest.mark.parametrize(
    ("code", "outcome"), [(78, "UserError"), (71, "OutOfMemory"), (75, "Infrastructure"), (1, "Infrastructure")]
)
def test_without_a_report_the_exit_code_speaks(code: int, outcome: str) -> None:
    world = started()
    world.ray_status(jobStatus="FAILED", jobDeploymentStatus="Failed", reason="AppFailed", message=exit_message(code))
    world.settle()
    assert world.outcomes()[0] == outcome


def test_words_in_a_log_are_not_an_exit_code() -> None:
    world = started()
    message = "worker died\nJob entrypoint command failed with exit code 78"
    world.ray_status(jobStatus="FAILED", jobDeploymentStatus="Failed", message=message)
    world.settle()
    assert world.outcomes()[0] == "Infrastructure"


def test_infrastructure_failures_back_off_then_retry_then_give_up() -> None:
    world = started(retry={"limit": 1, "backoffSeconds": 10})
    world.ray_status(jobStatus="FAILED", jobDeploymentStatus="Failed", message=exit_message(75))
    world.settle()
    assert world.condition("Running") == ("False", "BackingOff")
    world.finalize()
    assert world.settle().requeue_after == pytest.approx(10)
    assert world.created == ["job-1"]
    world.pass_time(10)
    world.settle()
    assert world.created == ["job-1", "job-2"]
    world.ray_status(jobStatus="FAILED", jobDeploymentStatus="Failed", message=exit_message(75))
    world.settle()
    assert world.condition("Failed") == ("True", "RetriesExhausted")
    assert "spec.retry.limit is 1" in world.message("Failed")


def test_preemption_is_not_counted() -> None:
    world = started(retry={"limit": 0, "backoffSeconds": 1})
    world.say("Ended", end={"outcome": "Preempted", "reason": "Preempted", "message": "told to stop"})
    world.settle()
    world.finalize()
    world.pass_time(1)
    world.settle()
    assert world.created == ["job-1", "job-2"]


def test_success_without_its_report_is_asked_again() -> None:
    world = started()
    world.ray_status(jobStatus="SUCCEEDED", jobDeploymentStatus="Complete")
    world.settle()
    world.finalize()
    world.pass_time(60)
    world.settle()
    assert world.created == ["job-1", "job-2"]


def test_the_next_attempt_waits_until_the_last_one_is_really_gone() -> None:
    world = started(retry={"limit": 3, "backoffSeconds": 0})
    world.ray_status(jobStatus="FAILED", jobDeploymentStatus="Failed", message="")
    world.settle()
    world.pass_time(1000)
    world.settle()
    assert world.created == ["job-1"], "the old RayJob is still being stopped"
    world.finalize()
    world.settle()
    assert world.created == ["job-1", "job-2"]


def test_suspend_stops_and_resume_continues_uncounted() -> None:
    world = started(retry={"limit": 0, "backoffSeconds": 1})
    world.edit(suspend=True)
    world.settle()
    assert world.condition("Suspended") == ("False", "Stopping")
    world.finalize()
    world.settle()
    assert world.condition("Suspended") == ("True", "SuspendedByUser")
    assert world.children == {}
    assert world.job["status"]["state"] == "Suspended"
    world.edit(suspend=False)
    world.settle()
    assert world.created == ["job-1", "job-2"]
    assert world.condition("Suspended") == ("False", "NotSuspended")
    assert world.outcomes() == ["Suspended", None]


def test_born_suspended_starts_nothing() -> None:
    world = World.of(suspend=True)
    world.settle()
    assert world.created == []
    assert world.condition("Suspended")[0] == "True"


def test_deadline_stops_the_run() -> None:
    world = started(activeDeadlineSeconds=100)
    assert world.settle().requeue_after == pytest.approx(100)
    world.pass_time(100)
    world.settle()
    assert world.condition("Failed") == ("True", "DeadlineExceeded")
    assert world.newest()["metadata"]["deletionTimestamp"]


def test_deadline_counts_the_pauses() -> None:
    world = started(activeDeadlineSeconds=100)
    world.edit(suspend=True)
    world.settle()
    world.finalize()
    world.pass_time(101)
    world.settle()
    assert world.condition("Failed") == ("True", "DeadlineExceeded")


def test_ttl_deletes_the_job() -> None:
    world = started(ttlSecondsAfterFinished=60)
    world.say("Ended", end=SUCCESS)
    assert world.settle().requeue_after == pytest.approx(60)
    assert not world.gone
    world.pass_time(60)
    world.reconcile()
    assert world.gone


def test_more_workers_than_fit_fails_with_what_to_change() -> None:
    world = World.of(workers={"count": 4}, training={"steps": 1, "globalBatchSize": 16, "microBatchSize": 4})
    world.settle()
    assert world.created == []
    assert world.condition("Failed") == ("True", "DoesNotFit")
    assert "4 workers of cpu 1, memory 2Gi do not fit" in world.message("Failed")
    assert "Lower spec.workers.count" in world.message("Planned")


def test_a_model_that_cannot_fit_in_memory_is_refused_before_anything_starts() -> None:
    world = World.of(model={"fresh": {"hiddenSize": 4096, "layers": 32, "heads": 32}})
    world.settle()
    assert world.created == []
    assert "spec.workers.resources.memory" in world.message("Failed")


def test_missing_kuberay_waits_and_says_so() -> None:
    world = World.of()
    world.ray_operator_missing = True
    world.settle()
    assert world.condition("Running") == ("False", "WaitingForRayOperator")
    world.ray_operator_missing = False
    world.settle()
    assert world.created == ["job-1"]


def test_a_refused_rayjob_is_the_users_to_mend() -> None:
    world = World.of()
    world.settle()
    world.ray_status(jobDeploymentStatus="ValidationFailed", reason="ValidationFailed", message="no PriorityClass x")
    world.settle()
    assert world.condition("Failed") == ("True", "Rejected")
    assert world.message("Failed") == "no PriorityClass x"


def test_out_of_memory_shrinks_the_micro_batch_and_keeps_the_global_batch() -> None:
    world = started()
    for micro_batch, recompute in [(2, False), (1, False), (1, True)]:
        world.say("Ended", end={"outcome": "OutOfMemory", "reason": "OutOfMemory", "message": "oom"})
        world.settle()
        world.finalize()
        world.pass_time(600)
        world.settle()
        run = run_of(world)
        assert (run.training.micro_batch_size, run.training.activation_checkpointing) == (micro_batch, recompute)
        assert run.training.global_batch_size == 16
    world.say("Ended", end={"outcome": "OutOfMemory", "reason": "OutOfMemory", "message": "oom"})
    world.settle()
    assert world.condition("Failed")[0] == "True"


def test_nothing_left_to_shrink() -> None:
    tight = TrainJobSpec.model_validate(
        spec(training={"steps": 1, "globalBatchSize": 2, "microBatchSize": 1, "activationCheckpointing": True})
    )
    assert replan_after_out_of_memory(tight, [{"outcome": "OutOfMemory"}]) is None


def test_base_model_waits_then_resolves_then_fails() -> None:
    world = World.of(model={"trainJob": {"name": "base"}}, tokenizer=None)
    world.settle()
    assert world.condition("Planned") == ("False", "ModelNotReady")
    assert "does not exist" in world.message("Planned")
    world.train_jobs["base"] = {"status": {"model": MODEL, "conditions": [{"type": "Succeeded", "status": "True"}]}}
    world.settle()
    assert run_of(world).model.uri == MODEL["uri"]
    failed = World.of(model={"trainJob": {"name": "base"}}, tokenizer=None)
    failed.train_jobs["base"] = {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    failed.settle()
    assert failed.condition("Failed") == ("True", "ModelNotReady")


def test_a_deleted_job_is_left_alone() -> None:
    world = started()
    world.job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    decision = world.reconcile()
    assert not decision.apply
    assert not decision.delete


def test_backoff_doubles_and_is_capped() -> None:
    retry = Retry(limit=99, backoff_seconds=10)
    assert [backoff(retry, n).total_seconds() for n in (0, 1, 2, 3, 7, 60)] == [0, 10, 20, 40, 600, 600]


def test_a_rayjob_of_somebody_else_under_our_name_is_never_touched() -> None:
    world = World.of()
    world.foreign_ray_job = {"kind": "RayJob", "metadata": {"name": "job-1"}}
    world.settle()
    assert world.created == []
    assert world.condition("Failed") == ("True", "NameTaken")


def test_a_job_that_is_created_again_waits_for_its_predecessors_run() -> None:
    world = World.of()
    owner = {"kind": "TrainJob", "name": "job", "uid": "uid-before"}
    world.foreign_ray_job = {"kind": "RayJob", "metadata": {"name": "job-1", "ownerReferences": [owner]}}
    world.settle()
    assert world.created == []
    assert world.condition("Running") == ("False", "WaitingForResources")
    world.foreign_ray_job = None
    world.settle()
    assert world.created == ["job-1"]
