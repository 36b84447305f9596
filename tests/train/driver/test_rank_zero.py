"""What rank 0 tells the driver, when the driver can be reached and when it cannot."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from slipway_api.trainjob import CheckpointStatus, TrainedModel
from slipway_jobs.reporting import RunState
from slipway_jobs.storage import Storage
from slipway_jobs.train.engine import StepMetrics
from slipway_jobs.train.rank_zero import RankZero


class Driver:
    """The other end: keeps what it is told, and may be away."""

    def __init__(self) -> None:
        self.states: list[RunState] = []
        self.away = False
        self.stop: str | None = None
        self.changed = threading.Condition()

    def tell(self, text: str) -> None:
        if self.away:
            raise ConnectionError("nobody there")
        with self.changed:
            self.states.append(RunState.model_validate_json(text))
            self.changed.notify_all()

    def asked_to_stop(self) -> str | None:
        if self.away:
            raise ConnectionError("nobody there")
        return self.stop

    def wait_for_step(self, step: int) -> None:
        def there() -> bool:
            progress = self.states[-1].progress if self.states else None
            return progress is not None and progress.step >= step

        with self.changed:
            assert self.changed.wait_for(there, timeout=5)


def step(number: int) -> StepMetrics:
    return StepMetrics(
        step=number,
        steps=1000,
        loss=2.5,
        learning_rate=1e-3,
        gradient_norm=0.5,
        tokens=512,
        seconds=0.1,
        tokens_per_second=5120.0,
        eta_seconds=10.0,
        eval_loss=None,
    )


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def rank_zero(driver: Driver, tmp_path: Path) -> RankZero:
    zero = RankZero(
        Storage(str(tmp_path)), 1, tell=driver.tell, asked_to_stop=driver.asked_to_stop, timeline={"workers": 1.0}
    )
    zero.steps = 1000
    return zero


def test_progress_is_told_about_once_a_second_and_events_at_once(rank_zero: RankZero, driver: Driver) -> None:
    rank_zero.on_resume(0, [])
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < 2.5:
        number += 1
        rank_zero.on_step(step(number))
        time.sleep(0.002)
    assert len(driver.states) <= 8
    rank_zero.on_checkpoint(CheckpointStatus(step=number, uri="/c"))
    driver.wait_for_step(number)
    assert driver.states[-1].checkpoint is not None
    assert driver.states[-1].checkpoint.time is not None
    assert {"workers", "first step"} <= set(driver.states[-1].timeline)
    rank_zero.close()


def test_the_last_evaluation_and_the_model_are_told_before_it_closes(rank_zero: RankZero, driver: Driver) -> None:
    model = TrainedModel(uri="/m", digest="sha256:0")
    rank_zero.on_resume(0, [])
    rank_zero.on_step(step(1000))
    rank_zero.on_eval(1000, 1.25, 4096)
    rank_zero.on_model(model)
    rank_zero.close()
    last = driver.states[-1]
    assert last.model == model
    assert last.progress is not None
    assert (last.progress.step, last.progress.eval_loss) == (1000, "1.2500")


def test_a_driver_that_is_away_misses_nothing_that_matters(
    rank_zero: RankZero, driver: Driver, capfd: pytest.CaptureFixture[str]
) -> None:
    driver.away = True
    rank_zero.on_stage("Training")
    for number in range(1, 50):
        rank_zero.on_step(step(number))
    time.sleep(0.6)
    assert rank_zero.stop_message is None
    driver.stop = "the run was told to stop"
    driver.away = False
    driver.wait_for_step(49)
    assert driver.states[-1].stage == "Training"
    deadline = time.monotonic() + 3
    while rank_zero.stop_message is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert rank_zero.stop_message == "the run was told to stop"
    rank_zero.close()
    assert capfd.readouterr().err.count("cannot reach the driver") == 1
