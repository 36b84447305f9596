"""The operator dies between any two effects, at any time, and the world still ends as if it had not."""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from .world import SUCCESS, Crash, World, exit_message

CONDITIONS = {"Planned", "Suspended", "Running", "Succeeded", "Failed"}


class Lifecycle(RuleBasedStateMachine):
    """Random faults, edits, reports and crashes against the ladder."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World.of(retry={"limit": 50, "backoffSeconds": 1})
        self.meddled = False

    @rule(crash_after=st.none() | st.integers(0, 4))
    def reconcile(self, crash_after: int | None) -> None:
        with contextlib.suppress(Crash):
            self.world.reconcile(crash_after)

    @rule(seconds=st.integers(0, 700))
    def pass_time(self, seconds: int) -> None:
        self.world.pass_time(seconds)

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        self.world.edit(suspend=suspend)

    @precondition(lambda self: self.world.live())
    @rule(code=st.sampled_from([75, 1, -9]))
    def die(self, code: int) -> None:
        self.world.ray_status(jobStatus="FAILED", jobDeploymentStatus="Failed", message=exit_message(code))

    @precondition(lambda self: self.world.live())
    @rule(stage=st.sampled_from(["Starting", "PreparingData", "Training", "SavingModel"]))
    def report(self, stage: str) -> None:
        self.world.say(stage, progress={"step": 1, "steps": 100})

    @precondition(lambda self: self.world.live())
    @rule()
    def preempt(self) -> None:
        self.world.say("Ended", end={"outcome": "Preempted", "reason": "Preempted", "message": "stop"})

    @rule()
    def finalize(self) -> None:
        self.world.finalize()

    # A RayJob that is deleted before its record is written leaves no trace at all: its number is used again, rightly.
    @precondition(lambda self: self.world.live() and len(self.world.created) == len(self.world.outcomes()))
    @rule()
    def somebody_deletes_the_rayjob(self) -> None:
        self.meddled = True
        self.world.newest()["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    @invariant()
    def at_most_one_run_is_alive(self) -> None:
        assert len(self.world.live()) <= 1

    @invariant()
    def no_attempt_is_created_twice(self) -> None:
        assert len(set(self.world.created)) == len(self.world.created)

    def teardown(self) -> None:
        """When the faults stop, the job succeeds."""
        world = self.world
        world.edit(suspend=False)
        for _ in range(200):
            world.settle()
            world.finalize()
            world.settle()
            if world.job["status"]["state"] in ("Succeeded", "Failed"):
                break
            world.pass_time(601)
            world.settle()
            if world.live() and not world.newest()["metadata"].get("deletionTimestamp"):
                world.ray_status(jobStatus="RUNNING", jobDeploymentStatus="Running")
                world.say("Ended", sequence=9, end=SUCCESS)
        if world.condition("Failed") == ("True", "RetriesExhausted"):
            assert sum(o == "Infrastructure" for o in world.outcomes()) > 15, "enough failures to use up the limit"
            return
        assert world.condition("Succeeded")[0] == "True"
        assert {one["type"] for one in world.job["status"]["conditions"]} == CONDITIONS, "crashes leave no gaps"
        assert world.job["status"]["storage"]
        ray_jobs = {name for kind, name in world.children if kind == "RayJob"}
        assert len(ray_jobs) <= 1
        secrets = {name for kind, name in world.children if kind == "Secret"}
        # Of a RayJob that somebody else deleted after its end, the Secret goes with the TrainJob.
        assert self.meddled or secrets <= {f"{name}-run" for name in ray_jobs}, "no Secret outlives its RayJob"


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=150, stateful_step_count=40)
