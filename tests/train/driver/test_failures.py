"""Which word a failure gets, as tables; the Ray exceptions are Ray's own classes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from slipway_api.run import ExitCode, Outcome
from slipway_jobs.errors import InfrastructureError, JobError, OutOfMemory, Preempted, UserError
from slipway_jobs.train.failures import RESTARTABLE, OomKills, RestartBudget, cause, job_error, ray_error

USER = UserError("DataNotFound", "data.sources[0]: nothing there")
PEER = InfrastructureError("PeerLost", "rank 0 lost contact")
DIED = WorkerHealthCheckFailedError("A worker health check failed.", failure=ActorDiedError())
RAY_OOM = WorkerHealthCheckFailedError(
    "A worker health check failed.", failure=OutOfMemoryError("node is low on memory")
)


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (USER, Outcome.USER_ERROR, "DataNotFound"),
        (MemoryError(), Outcome.OUT_OF_MEMORY, "OutOfMemory"),
        (torch.OutOfMemoryError("CUDA out of memory"), Outcome.OUT_OF_MEMORY, "OutOfMemory"),
        (OutOfMemoryError("killed"), Outcome.OUT_OF_MEMORY, "OutOfMemory"),
        (KeyboardInterrupt(), Outcome.PREEMPTED, "Interrupted"),
        (ActorDiedError(), Outcome.INFRASTRUCTURE, "WorkerLost"),
        (ValueError("x" * 9000), Outcome.INFRASTRUCTURE, "UnexpectedError"),
        (ZeroDivisionError(), Outcome.INFRASTRUCTURE, "UnexpectedError"),
    ],
)
def test_one_exception(error: BaseException, outcome: Outcome, reason: str) -> None:
    found = job_error(error, rank=1)
    assert (found.outcome, found.reason) == (outcome, reason)
    assert len(found.message) <= 4096
    assert "\n" not in found.message
    if error is not USER:
        assert "rank 1" in found.message


@pytest.mark.parametrize(
    ("failures", "outcome", "reason"),
    [
        ({0: PEER, 1: USER}, Outcome.USER_ERROR, "DataNotFound"),
        ({0: USER, 1: PEER}, Outcome.USER_ERROR, "DataNotFound"),
        ({0: PEER, 1: DIED}, Outcome.INFRASTRUCTURE, "WorkerLost"),
        ({0: DIED, 1: PEER}, Outcome.INFRASTRUCTURE, "WorkerLost"),
        ({0: PEER, 1: PEER}, Outcome.INFRASTRUCTURE, "PeerLost"),
        ({0: PEER, 1: RAY_OOM}, Outcome.OUT_OF_MEMORY, "OutOfMemory"),
        ({0: DIED, 1: OutOfMemory("OutOfMemory", "x")}, Outcome.OUT_OF_MEMORY, "OutOfMemory"),
        ({0: Preempted("Stopped", "x"), 1: PEER}, Outcome.PREEMPTED, "Stopped"),
        ({3: UserExceptionWithTraceback(USER, "Traceback ...")}, Outcome.USER_ERROR, "DataNotFound"),
    ],
)
def test_the_cause_is_told_from_its_consequences(
    failures: dict[int, BaseException], outcome: Outcome, reason: str
) -> None:
    for found in (cause(failures), ray_error(WorkerGroupError("text", failures))):  # type: ignore[arg-type]
        assert (found.outcome, found.reason) == (outcome, reason)


@pytest.mark.parametrize(
    ("error", "outcome", "reason", "restart"),
    [
        (ControllerError(WorkerGroupStartupTimeoutError(4)), Outcome.INFRASTRUCTURE, "WorkersDoNotFit", False),
        (ControllerError(WorkerGroupStartupFailedError("x")), Outcome.INFRASTRUCTURE, "WorkersNotStarted", True),
        (ActorDiedError(), Outcome.INFRASTRUCTURE, "ControllerLost", False),
        (ConnectionError("gcs is gone"), Outcome.INFRASTRUCTURE, "UnexpectedError", False),
        (WorkerGroupError("x", {0: DIED}), Outcome.INFRASTRUCTURE, "WorkerLost", True),
        (WorkerGroupError("x", {0: USER}), Outcome.USER_ERROR, "DataNotFound", False),
        (WorkerGroupError("x", {0: MemoryError()}), Outcome.OUT_OF_MEMORY, "OutOfMemory", False),
    ],
)
def test_what_fit_throws(error: BaseException, outcome: Outcome, reason: str, restart: bool) -> None:
    found = ray_error(error)
    assert (found.outcome, found.reason) == (outcome, reason)
    assert (found.reason in RESTARTABLE) is restart


@pytest.mark.parametrize("error", [USER, PEER, OutOfMemory("OutOfMemory", "m"), Preempted("Stopped", "m")])
def test_our_errors_cross_process_borders(error: JobError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.reason, copy.message) == (type(error), error.reason, error.message)
    assert ExitCode.outcome(ExitCode.of(copy.outcome)) is error.outcome


def test_restarts_with_progress_are_free() -> None:
    budget = RestartBudget(limit=3)
    assert [budget.spend(step) for step in (None, 10, 20, 30, 40, 50)] == [True] * 6
    assert [budget.spend(50) for _ in range(4)] == [True, True, False, False]


def test_restarts_without_a_checkpoint_are_bounded() -> None:
    budget = RestartBudget(limit=3)
    assert [budget.spend(None) for _ in range(5)] == [True, True, True, False, False]


@pytest.mark.parametrize("where", ["sys/fs/cgroup/pod/x/memory.events", "proc/vmstat"])
def test_kernel_kills_are_counted(tmp_path: Path, where: str) -> None:
    counter = tmp_path / where
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/x\n")
    counter.parent.mkdir(parents=True, exist_ok=True)
    counter.write_text("oom 4\noom_kill 2\n")
    kills = OomKills(tmp_path)
    assert not kills.any_since()
    counter.write_text("oom 5\noom_kill 3\n")
    assert kills.any_since()
    assert not kills.any_since()


def test_a_machine_without_counters(tmp_path: Path) -> None:
    assert not OomKills(tmp_path).any_since()


def test_a_rank_that_says_nothing_is_named() -> None:
    assert ray_error(WorkerGroupError("x", {0: PEER}), 2).message.endswith("not heard from: rank 1")
    assert "not heard" not in ray_error(WorkerGroupError("x", {0: PEER, 1: PEER}), 2).message
