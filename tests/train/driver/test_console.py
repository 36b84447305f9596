"""The lines that people read."""

from __future__ import annotations

import pytest

from slipway_api.run import Outcome, RunEnd
from slipway_api.trainjob import CheckpointStatus, PlanStatus, Progress, SkippedCheckpoint, TrainedModel
from slipway_jobs.reporting import RunState
from slipway_jobs.train.console import Console, duration


class Screen:
    """A console on a clock that the test turns."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.lines: list[str] = []
        self.console = Console(1000.0, now=lambda: self.time, write=self.lines.append)

    def step(self, step: int, **changes: object) -> None:
        progress = Progress(step=step, steps=1000, loss="3.21", tokens_per_second=8123, eta_seconds=130)
        self.console.show(RunState(stage="Training", progress=progress, **changes))  # type: ignore[arg-type]


def test_progress_has_a_human_cadence() -> None:
    screen = Screen()
    for step in range(1, 1001):
        screen.time += 0.2
        screen.step(step)
    shown = [line for line in screen.lines if "step " in line]
    assert "step 1/1,000  loss 3.21  8,123 tokens/s  ETA 2m10s" in shown[0]
    assert 30 <= len(shown) <= 50  # every 2 s for a minute, then every 10 s
    assert "step 1,000/1,000" in shown[-1]


def test_events_are_told_once() -> None:
    screen = Screen()
    plan = PlanStatus(
        strategy="fsdp(shard=2, fp32)",
        world_size=2,
        parameters=1000,
        parameters_per_rank=500,
        micro_batch_size=1,
        accumulation_steps=1,
    )
    changes = {
        "plan": plan,
        "checkpoint": CheckpointStatus(step=5, uri="/c/5"),
        "resumed_from_step": 5,
        "skipped_checkpoints": [SkippedCheckpoint(uri="/c/9", reason="model.bin: wrong digest")],
        "timeline": {"ray": 1001.5, "workers": 1004.0, "first step": 1009.0},
    }
    for step in (6, 7):
        screen.time += 0.1
        screen.step(step, **changes)
    text = "\n".join(screen.lines)
    for words in ("fsdp(shard=2, fp32)", "checkpoint: step 5", "resumed from the checkpoint of step 5", "wrong digest"):
        assert text.count(words) == 1
    assert "start-up: ray 1.5s, workers 2.5s, first step 5.0s, in all 9.0s" in text


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.SUCCEEDED])
def test_the_last_line_of_a_failure_says_what_and_what_next(outcome: Outcome) -> None:
    screen = Screen()
    screen.console.end(RunEnd(outcome=outcome, reason="SomeReason", message="the thing broke"))
    (line,) = screen.lines
    assert outcome.value in line
    assert "SomeReason" in line
    assert "the thing broke" in line
    assert line.endswith("]")


def test_the_last_line_of_a_success_names_the_model_and_its_quality() -> None:
    screen = Screen()
    model = TrainedModel(uri="/m", digest="sha256:0", perplexity="12.1", initial_perplexity="8012.5")
    screen.console.end(RunEnd(outcome=Outcome.SUCCEEDED, reason="ModelSaved", message="saved /m", model=model))
    assert screen.lines[0].endswith("Succeeded: saved /m; held-out perplexity 12.1, was 8012.5")


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (65, "1m05s"), (3725, "1h02m")])
def test_durations(seconds: int, text: str) -> None:
    assert duration(seconds) == text
