"""The driver on a real Ray cluster: a small job on two workers, undisturbed, misled and stopped.

What happens when ranks or the driver are killed, and when a rank meets a user's error, is in tests/e2e, with the
operator that makes the next attempt.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from slipway_api.run import ExitCode, ReportTarget, RunSpec
from slipway_jobs.metrics_history import metrics_path
from slipway_jobs.run_log import log_path

from ...ray_head import RayHead, free_port  # noqa: TID252 - `tests` is no package to import from
from .conftest import TOKEN, Operator, make_run, write_text

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

EVERY = 10
STEPS = 20


@pytest.fixture(scope="module")
def ray() -> Iterator[RayHead]:
    cluster = RayHead()
    yield cluster
    cluster.close()


class Run:
    """One attempt as a process of its own, as Ray's job supervisor starts it."""

    def __init__(self, ray: RayHead, spec: RunSpec, **environment: str) -> None:
        self.spec = spec
        self.store = Path(spec.storage)
        self.output = Path(tempfile.mkstemp(prefix="slipway-out-")[1])
        document = json.dumps(spec.to_wire())
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slipway_jobs.train"],
                env=ray.environment | {"SLIPWAY_RUN": document, "SLIPWAY_END_REPORT_SECONDS": "10"} | environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, timeout: float = 120) -> int:
        """The exit code."""
        try:
            return self.process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.text()[-4000:]}") from None

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of this attempt's metrics history so far."""
        path = self.store / metrics_path(self.spec.attempt)
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def last_step(self) -> int:
        return max((line.get("step", 0) for line in self.metrics()), default=0)

    def wait_for_step(self, step: int, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while self.last_step() < step:
            assert self.process.poll() is None, self.text()[-4000:]
            assert time.monotonic() < deadline, self.text()[-4000:]
            time.sleep(0.05)


def spec_for(folder: Path, operator: Operator | None = None, **changes: Any) -> RunSpec:
    write_text(folder / "text")
    (folder / "token").write_text(TOKEN)
    report = (
        ReportTarget(url=operator.url, token_file=str(folder / "token"), interval_seconds=1).to_wire()
        if operator
        else None
    )
    base: dict[str, Any] = {
        "uid": "one-uid-for-all",  # it stands in no weight
        "report": report,
        "training": {"steps": STEPS, "globalBatchSize": 8, "microBatchSize": 2, "precision": "fp32"},
        "checkpoint": {"everySteps": EVERY, "keepLast": 3},
    }
    return make_run(folder, **(base | changes))


def weights(spec: RunSpec) -> str:
    digest = hashlib.sha256()
    files = sorted(Path(spec.storage, "model").glob("*.safetensors"))
    assert files
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


class Undisturbed(NamedTuple):
    """A run, who listened to it, the actors it had, and its exit code."""

    run: Run
    operator: Operator
    actors: list[str]
    code: int


@pytest.fixture(scope="module")
def undisturbed(ray: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """A run that nobody touches."""
    operator = Operator()
    run = Run(ray, spec_for(tmp_path_factory.mktemp("undisturbed"), operator))
    run.wait_for_step(1)
    actors = sorted(ray.actors().values())
    yield Undisturbed(run, operator, actors, run.wait())
    operator.close()


def test_a_small_job_ends_with_model_log_metrics_and_reports(undisturbed: Undisturbed) -> None:
    run, operator, _, code = undisturbed
    assert code == ExitCode.SUCCEEDED, run.text()
    lineage = json.loads((run.store / "model" / "slipway.json").read_text())
    assert lineage["run"]["uid"] == run.spec.uid
    log = (run.store / log_path(1)).read_text()
    assert "plan: fsdp(shard=2" in log
    assert "start-up: " in log
    assert "Succeeded: saved" in log
    assert log == run.text()
    assert TOKEN not in log
    metrics = run.metrics()
    assert [line["step"] for line in metrics if line["kind"] == "step"] == list(range(1, STEPS + 1))
    assert metrics[0]["resumedFromStep"] is None
    losses = [line["loss"] for line in metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    stages = [body["stage"] for body in operator.bodies]
    assert stages[-1] == "Ended"
    assert {"Training", "SavingModel"} <= set(stages)
    last = operator.bodies[-1]
    assert last["end"]["outcome"] == "Succeeded"
    assert last["end"]["model"]["uri"] == str(run.store / "model")
    assert last["plan"]["parametersPerRank"] < last["plan"]["parameters"]
    assert last["progress"]["step"] == STEPS
    assert last["checkpoint"]["step"] == STEPS
    assert float(last["end"]["model"]["perplexity"]) < float(last["end"]["model"]["initialPerplexity"])


def test_no_process_starts_that_the_run_does_not_need(undisturbed: Undisturbed) -> None:
    """Each costs more than a second of the time to the first step: see ray_adaptor.py."""
    assert undisturbed.actors == ["TrainWorker", "TrainWorker"]


def test_a_run_that_has_succeeded_before_returns_at_once(ray: RayHead, undisturbed: Undisturbed) -> None:
    first, operator, _, _ = undisturbed
    before = weights(first.spec)
    began = time.monotonic()
    again = Run(ray, first.spec.model_copy(update={"attempt": 2}))
    assert again.wait() == ExitCode.SUCCEEDED, again.text()
    assert time.monotonic() - began < 5
    assert operator.end["outcome"] == "Succeeded"
    assert operator.end["model"]["uri"] == str(first.store / "model")
    assert weights(first.spec) == before


def test_missing_data_is_a_user_error_and_nothing_is_left_running(
    ray: RayHead, tmp_path: Path, operator: Operator
) -> None:
    spec = spec_for(tmp_path, operator, data={"sources": [{"uri": str(tmp_path / "nowhere")}], "sequenceLength": 64})
    began = time.monotonic()
    run = Run(ray, spec)
    assert run.wait() == ExitCode.USER_ERROR, run.text()
    assert time.monotonic() - began < 20
    assert operator.end["outcome"] == "UserError"
    assert operator.end["reason"] == "DataNotFound"
    assert "nowhere" in operator.end["message"]
    last = run.text().splitlines()[-1]
    assert "DataNotFound" in last
    assert "nowhere" in last
    wait_until_no_workers(ray)


def test_a_stop_saves_the_step_it_was_at(ray: RayHead, tmp_path: Path, operator: Operator) -> None:
    training = {"steps": 100_000, "globalBatchSize": 8, "microBatchSize": 2}
    spec = spec_for(tmp_path, operator, training=training, checkpoint={"everySteps": 50_000})
    # Not Ray's 3 s: what is asked here is what the run does with the time, and a neighbour may take some of it.
    run = Run(ray, spec, RAY_JOB_STOP_WAIT_TIME_S="20")
    run.wait_for_step(5)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.wait(30) == ExitCode.PREEMPTED, run.text()
    (saved,) = (run.store / "checkpoints").iterdir()
    assert operator.end["outcome"] == "Preempted"
    assert "SIGTERM" in operator.end["message"]
    assert operator.bodies[-1]["checkpoint"]["uri"] == str(saved)
    assert operator.bodies[-1]["checkpoint"]["step"] >= 5
    wait_until_no_workers(ray)


def test_an_attempt_that_was_superseded_leaves_without_a_word(ray: RayHead, tmp_path: Path, operator: Operator) -> None:
    operator.answers = [410]
    run = Run(ray, spec_for(tmp_path, operator))
    assert run.wait(30) == ExitCode.PREEMPTED, run.text()
    assert len(operator.requests) == 1
    assert "Superseded" in run.text().splitlines()[-1]
    wait_until_no_workers(ray)


def test_more_workers_than_the_cluster_has(ray: RayHead, tmp_path: Path, operator: Operator) -> None:
    spec = spec_for(tmp_path, operator, workers={"count": 4, "resources": {"cpu": "1"}})
    run = Run(ray, spec, SLIPWAY_ROOM_SECONDS="2")
    assert run.wait(30) == ExitCode.INFRASTRUCTURE
    assert operator.end["reason"] == "WorkersDoNotFit"
    assert "4 CPU" in operator.end["message"]


@pytest.mark.parametrize("document", ["", "{}", "not json"])
def test_a_bad_contract_is_one_line_and_no_traceback(document: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "slipway_jobs.train"],
        env={**os.environ, "SLIPWAY_RUN": document},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == ExitCode.USER_ERROR
    assert len(result.stderr.splitlines()) == 1
    assert "SLIPWAY_RUN" in result.stderr


def test_a_cluster_that_does_not_answer(tmp_path: Path, operator: Operator) -> None:
    spec = spec_for(tmp_path, operator)
    environment = {**os.environ, "SLIPWAY_RUN": json.dumps(spec.to_wire()), "SLIPWAY_CONNECT_SECONDS": "3"}
    environment["RAY_ADDRESS"] = f"127.0.0.1:{free_port()}"
    result = subprocess.run(
        [sys.executable, "-m", "slipway_jobs.train"], env=environment, capture_output=True, timeout=60, check=False
    )
    assert result.returncode == ExitCode.INFRASTRUCTURE
    assert operator.end["reason"] == "RayUnreachable"


def wait_until_no_workers(ray: RayHead, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while workers := ray.actors_of("TrainWorker"):
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)
