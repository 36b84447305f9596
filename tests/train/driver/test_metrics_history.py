"""The metrics file of an attempt: every step once, readable at any moment, bounded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from slipway_jobs.metrics_history import MAX_STEPS, MetricsHistory, metrics_path
from slipway_jobs.storage import Storage

pytestmark = pytest.mark.timed


def history(storage: Storage, *, resumed: int | None = None, steps: int = 100) -> MetricsHistory:
    return MetricsHistory(storage, 1, steps=steps, resumed_from_step=resumed, now=lambda: "2026-01-01T00:00:00Z")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / metrics_path(1)).read_text().splitlines()]


def test_one_line_per_step_and_evaluation(tmp_path: Path) -> None:
    metrics = history(Storage(str(tmp_path)))
    metrics.evaluation(0, loss=9.0)
    metrics.step(1, loss=8.5, gradNorm=0.5)
    metrics.step(2, loss=float("nan"), gradNorm=None)
    metrics.close()
    start, first_eval, one, two = lines(tmp_path)
    assert start == {
        "kind": "start",
        "attempt": 1,
        "resumedFromStep": None,
        "steps": 100,
        "everySteps": 1,
        "time": "2026-01-01T00:00:00Z",
    }
    assert (first_eval["kind"], first_eval["loss"]) == ("eval", 9.0)
    assert (one["kind"], one["step"], one["loss"], one["gradNorm"]) == ("step", 1, 8.5, 0.5)
    assert two["loss"] is None


def test_workers_that_start_again_leave_no_step_twice(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    before = history(storage)
    for step in range(1, 8):
        before.step(step, loss=float(step))
    # And then the worker is killed, in the middle of a line.
    with (tmp_path / metrics_path(1)).open("a") as stream:
        stream.write('{"kind": "step", "st')
    again = history(storage, resumed=5)
    again.step(6, loss=60.0)
    again.close()
    found = lines(tmp_path)
    assert [line["step"] for line in found if line["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert found[-1]["loss"] == 60.0
    assert [line["resumedFromStep"] for line in found if line["kind"] == "start"] == [None, 5]


def test_a_long_run_keeps_a_bounded_number_of_steps_and_the_last_one(tmp_path: Path) -> None:
    total = 3 * MAX_STEPS + 1
    metrics = history(Storage(str(tmp_path)), steps=total)
    began = time.perf_counter()
    for step in range(1, total + 1):
        metrics.step(step, loss=1.0)
    seconds = time.perf_counter() - began
    metrics.close()
    steps = [line["step"] for line in lines(tmp_path) if line["kind"] == "step"]
    assert len(steps) <= MAX_STEPS
    assert steps[-1] == total
    assert seconds / total < 100e-6


def test_a_step_can_be_read_before_the_next_one_begins(tmp_path: Path) -> None:
    """A checkpoint may be safe a moment later: were the line still in a buffer, a kill would leave a hole."""
    metrics = history(Storage(str(tmp_path)))
    for step in (1, 2):
        metrics.step(step, loss=1.0)
        assert lines(tmp_path)[-1]["step"] == step
    metrics.close()


@pytest.mark.parametrize("resumed", [None, 1])
def test_an_object_store(resumed: int | None) -> None:
    storage = Storage(f"memory://metrics-{resumed}/job")
    before = history(storage)
    before.step(1, loss=1.0)
    before.close()
    again = history(storage, resumed=resumed)
    again.step(2, loss=2.0)
    again.close()
    content = fsspec.filesystem("memory").cat(f"/metrics-{resumed}/job/{metrics_path(1)}").decode()
    steps = [json.loads(line).get("step") for line in content.splitlines()]
    assert steps == ([None, None, 2] if resumed is None else [None, 1, None, 2])
