"""A run that was killed and resumed ends with the same bits as one that was not; one that lost a rank says so soon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slipway_api.run import RunSpec

MakeRun = Callable[..., RunSpec]


def events(end: Any, kind: str) -> list[Any]:
    return [value for name, value in end["events"] if name == kind]


STRATEGIES = {"ddp": {"ddp": {}}, "fsdp": {"fsdp": {}}}


@pytest.mark.parametrize("name", STRATEGIES)
def test_killed_and_resumed_is_bit_identical(name: str, make_run: MakeRun, launch: Any, tmp_path: Path) -> None:
    training = {"steps": 7, "evalEverySteps": 3, "schedule": {"warmupSteps": 2}}

    def run_of(storage: str, attempt: int) -> RunSpec:
        return make_run(
            storage=tmp_path / storage,
            attempt=attempt,
            strategy=STRATEGIES[name],
            training=training,
            checkpoint={"everySteps": 4, "keepLast": 2},
        )

    undisturbed = launch(run_of("calm", 1))
    assert undisturbed[0]["result"]["steps"] == 7

    killed = launch(run_of("killed", 1), exit_at={0: 5, 1: 5})
    assert [end.exit_code for end in killed] == [-9, -9]
    resumed = launch(run_of("killed", 2))

    assert resumed[0]["result"]["resumed"] in (2, 4)  # the save of step 4 may have been cut short
    assert resumed[0]["result"]["digest"] == undisturbed[0]["result"]["digest"]
    # What was measured before the kill is not lost, and what came after is the same to the last digit.
    assert events(resumed[0], "model") == [
        {**events(undisturbed[0], "model")[0], "uri": str(tmp_path / "killed" / "model")}
    ]
    calm_steps = {step: (loss, norm) for step, loss, norm in events(undisturbed[0], "step")}
    for step, loss, norm in events(resumed[0], "step"):
        assert (loss, norm) == calm_steps[step]

    lineage = json.loads((tmp_path / "killed" / "model" / "slipway.json").read_text())
    assert lineage["run"]["attempt"] == 2
    kept = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert len(kept) == 2 and kept[-1] == "step-00000007-a2"

    again = launch(run_of("killed", 3))
    assert again[0]["result"] == {"digest": resumed[0]["result"]["digest"], "steps": 7, "resumed": -1}
    assert events(again[0], "step") == []


def test_a_killed_rank_is_noticed_by_the_other(make_run: MakeRun, launch: Any) -> None:
    ends = launch(make_run(strategy={"fsdp": {}}), exit_at={1: 2}, timeout=40)
    assert ends[1].exit_code == -9
    assert (ends[0]["error"]["class"], ends[0]["error"]["reason"]) == ("InfrastructureError", "PeerLost")
    assert "rank 0" in ends[0]["error"]["message"]


@pytest.mark.parametrize("strategy", [{"ddp": {}}, {"fsdp": {"shardDegree": 1}}], ids=["ddp", "hsdp"])
def test_a_hanging_rank_is_noticed_too(strategy: Any, make_run: MakeRun, launch: Any) -> None:
    (end,) = launch(make_run(strategy=strategy), hang_at={1: 2}, collective_seconds=4, timeout=60)
    assert (end["error"]["class"], end["error"]["reason"]) == ("InfrastructureError", "PeerLost")


def test_a_stop_saves_and_the_next_attempt_goes_on(make_run: MakeRun, launch: Any, tmp_path: Path) -> None:
    calm = launch(make_run(storage=tmp_path / "calm"))
    stopped = launch(make_run(storage=tmp_path / "stopped"), stop_after=3)
    for end in stopped:
        assert (end["error"]["class"], end["error"]["message"]) == ("Preempted", "the test wants to stop")
    step = events(stopped[0], "checkpoint")[-1]["step"]
    assert step in (3, 4)
    resumed = launch(make_run(storage=tmp_path / "stopped", attempt=2))
    assert resumed[0]["result"]["resumed"] == step
    assert resumed[0]["result"]["digest"] == calm[0]["result"]["digest"]


def test_a_full_disk_costs_only_the_checkpoint(make_run: MakeRun, launch: Any, tmp_path: Path) -> None:
    calm = launch(make_run(storage=tmp_path / "calm"))
    run = make_run(storage=tmp_path / "full", checkpoint={"everySteps": 1, "keepLast": 5})
    ends = launch(run, disk_full_at=2, disk_free_at=4)
    assert ends[0]["result"]["digest"] == calm[0]["result"]["digest"]
    failed = events(ends[0], "warning")
    assert failed and all(warning["reason"] == "CheckpointNotSaved" for warning in failed)
    assert failed[0]["reason"] == "CheckpointNotSaved" and "are free on that disk" in failed[0]["message"]
    unsaved = {int(warning["message"].split("of step ")[1].split()[0]) for warning in failed}
    assert 3 in unsaved
    saved = [checkpoint["step"] for checkpoint in events(ends[0], "checkpoint")]
    assert {1, 6} <= set(saved) and set(saved) | unsaved == set(range(1, 7)) and not set(saved) & unsaved
    there = sorted(path.name for path in (tmp_path / "full" / "checkpoints").iterdir())
    assert there == [f"step-{step:08d}-a1" for step in saved]


def test_a_loss_that_is_not_finite_ends_the_run(make_run: MakeRun, launch: Any, tmp_path: Path) -> None:
    run = make_run(
        storage=tmp_path / "nan",
        training={"optimizer": {"learningRate": "1e30"}, "maxGradNorm": "0"},
        checkpoint={"everySteps": 1},
    )
    ends = launch(run)
    assert {end["error"]["reason"] for end in ends} == {"LossNotFinite"}
    assert {end["error"]["class"] for end in ends} == {"UserError"}
    steps = [step for step, _, _ in events(ends[0], "step")]
    assert f"at step {steps[-1] + 1} of 6" in ends[0]["error"]["message"]
    assert [c["step"] for c in events(ends[0], "checkpoint")] == steps  # every good step is kept, the bad one is not
