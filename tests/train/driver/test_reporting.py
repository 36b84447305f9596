"""Reports against a real HTTP server: cumulative, rate-limited, persistent about the end, silent about the token."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from slipway_api.run import Outcome, Report, ReportTarget, RunEnd, RunSpec
from slipway_api.trainjob import CheckpointStatus, PlanStatus, Progress, SkippedCheckpoint
from slipway_jobs.reporting import HttpTransport, Reporter, RunState

from .conftest import TOKEN, Operator

pytestmark = pytest.mark.timed

END = RunEnd(outcome=Outcome.SUCCEEDED, reason="ModelSaved", message="done")
PLAN = PlanStatus(
    strategy="fsdp(shard=2, fp32)",
    world_size=2,
    parameters=100,
    parameters_per_rank=50,
    micro_batch_size=2,
    accumulation_steps=1,
)


def reporter_for(run: RunSpec, **options: object) -> Reporter:
    assert run.report is not None
    return Reporter(HttpTransport(run.report, run), **options)  # type: ignore[arg-type]


def state(step: int, **changes: object) -> RunState:
    return RunState(stage="Training", plan=PLAN, progress=Progress(step=step, steps=100), **changes)  # type: ignore[arg-type]


def test_reports_are_cumulative_valid_and_numbered(run_spec: RunSpec, operator: Operator) -> None:
    reporter = reporter_for(run_spec, interval_seconds=0.05)
    operator.wait(1)
    reporter.update(state(1))
    operator.wait(2)
    reporter.update(state(2, checkpoint=CheckpointStatus(step=2, uri="/c/2")))
    operator.wait(3)
    assert reporter.end(END)
    reports = [Report.model_validate(body) for body in operator.bodies]
    assert [r.sequence for r in reports] == sorted({r.sequence for r in reports})
    assert reports[0].stage == "Starting"
    assert reports[-1].stage == "Ended"
    assert reports[-1].end == END
    assert reports[-1].plan == PLAN
    assert reports[-1].checkpoint is not None
    assert {request["path"] for request in operator.requests} == {f"/v1/runs/trainjobs/default/small/{run_spec.uid}/1"}
    assert {request["token"] for request in operator.requests} == {TOKEN}


def test_progress_waits_for_the_interval_and_a_checkpoint_does_not(run_spec: RunSpec, operator: Operator) -> None:
    reporter = reporter_for(run_spec, interval_seconds=30.0)
    operator.wait(1)
    reporter.update(state(1))  # a new stage: at once
    operator.wait(2)
    for step in range(2, 40):
        reporter.update(state(step))
        time.sleep(0.01)
    assert len(operator.requests) == 2
    began = time.monotonic()
    reporter.update(state(40, checkpoint=CheckpointStatus(step=40, uri="/c/40")))
    operator.wait(3)
    assert time.monotonic() - began < 1.0
    assert operator.bodies[-1]["progress"]["step"] == 40
    reporter.end(END)


def test_progress_is_sent_once_per_interval(run_spec: RunSpec, operator: Operator) -> None:
    reporter = reporter_for(run_spec, interval_seconds=0.3)
    reporter.update(state(0))
    began = time.monotonic()
    step = 0
    while time.monotonic() - began < 1.5:
        step += 1
        reporter.update(state(step))
        time.sleep(0.005)
    assert 4 <= len(operator.requests) <= 7
    reporter.end(END)


def test_nothing_new_is_not_sent_again(run_spec: RunSpec, operator: Operator) -> None:
    reporter = reporter_for(run_spec, interval_seconds=0.05)
    reporter.update(state(1))
    time.sleep(0.5)
    reporter.update(state(1))
    time.sleep(0.2)
    assert len(operator.requests) <= 2
    reporter.end(END)


def test_the_end_is_sent_until_it_is_acknowledged(run_spec: RunSpec, operator: Operator) -> None:
    reporter = reporter_for(run_spec, jitter=lambda: 0.0)
    operator.wait(1)
    operator.answers = [503, 500]
    assert reporter.end(END)
    ends = [body for body in operator.bodies if "end" in body]
    assert len(ends) == 3
    assert ends[0]["sequence"] < ends[1]["sequence"] < ends[2]["sequence"]


def test_the_end_gives_up_at_the_deadline(tmp_path: Path, token_file: Path, run_spec: RunSpec) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    target = ReportTarget(url=f"http://127.0.0.1:{port}", token_file=str(token_file))
    reporter = Reporter(HttpTransport(target, run_spec))
    began = time.monotonic()
    assert not reporter.end(END, deadline_seconds=1.0)
    assert 0.9 < time.monotonic() - began < 3.0


def test_an_outage_never_blocks_and_the_newest_state_arrives_after_it(run_spec: RunSpec, operator: Operator) -> None:
    operator.answers = [503] * 2
    reporter = reporter_for(run_spec, interval_seconds=0.05, jitter=lambda: 0.0)
    began = time.monotonic()
    for step in range(1, 200):
        reporter.update(state(step))
    assert time.monotonic() - began < 0.2
    operator.wait(3)
    assert operator.bodies[2]["progress"]["step"] == 199
    assert reporter.end(END)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_stops_progress_but_the_end_gets_one_try(run_spec: RunSpec, operator: Operator, status: int) -> None:
    operator.answers = [status]
    reporter = reporter_for(run_spec, interval_seconds=0.05)
    operator.wait(1)
    reporter.update(state(1))
    time.sleep(0.4)
    assert len(operator.requests) == 1
    operator.answers = [status]
    assert not reporter.end(END)
    assert len(operator.requests) == 2


@pytest.mark.parametrize("status", [409, 410])
def test_a_superseded_attempt_is_told_once_and_says_no_more(run_spec: RunSpec, operator: Operator, status: int) -> None:
    told: list[str] = []
    operator.answers = [200, status]
    reporter = reporter_for(run_spec, interval_seconds=0.05, on_superseded=told.append)
    operator.wait(1)
    reporter.update(state(1))
    operator.wait(2)
    time.sleep(0.3)
    assert told == [f"answer {status}"]
    assert not reporter.end(END)
    assert len(operator.requests) == 2


def test_the_token_is_read_anew_and_never_written(
    run_spec: RunSpec, operator: Operator, token_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reporter = reporter_for(run_spec, interval_seconds=0.05, jitter=lambda: 0.0)
    operator.wait(1)
    token_file.write_text("another-token")
    reporter.update(state(1))
    operator.wait(2)
    assert [request["token"] for request in operator.requests] == [TOKEN, "another-token"]
    token_file.write_text("bad\ntoken\n")
    reporter.update(state(2))
    time.sleep(0.3)
    token_file.write_text("another-token")
    operator.answers = [503, 503]
    assert reporter.end(END)
    output = "".join(capfd.readouterr())
    assert "warning: reporting" in output
    assert "another-token" not in output
    assert TOKEN not in output
    assert "bad" not in output


def test_a_reset_connection_is_made_again(run_spec: RunSpec, token_file: Path) -> None:
    """A server that closes after each answer, as a proxy may."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            with connection:
                data = b""
                while b"\r\n\r\n" not in data or not data.rstrip().endswith(b"}"):
                    data += connection.recv(65536)
                seen.append(data)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    threading.Thread(target=serve, daemon=True).start()
    target = ReportTarget(url=f"http://127.0.0.1:{listener.getsockname()[1]}", token_file=str(token_file))
    transport = HttpTransport(target, run_spec)
    statuses = [transport.post(b"{}").status for _ in range(5)]
    listener.close()
    assert statuses.count(200) == 3  # between them, the closed connection is noticed and not mistaken for an answer
    assert statuses[0] == 200


def test_a_run_without_an_operator(capfd: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(None)
    reporter.update(state(3))
    assert reporter.state.progress is not None
    assert reporter.end(END)


def test_state_after_a_restart_keeps_what_is_not_known_again() -> None:
    skipped = SkippedCheckpoint(uri="/c/9", reason="digest")
    earlier = state(40, checkpoint=CheckpointStatus(step=35, uri="/c/35"), skipped_checkpoints=[skipped])
    merged = RunState(stage="Starting").after(earlier)
    assert merged.stage == "Starting"
    assert merged.plan == PLAN
    assert merged.checkpoint == earlier.checkpoint
    assert merged.skipped_checkpoints == [skipped]
    newer = state(36, resumed_from_step=35).after(earlier)
    assert newer.progress is not None
    assert newer.progress.step == 36


def test_state_survives_the_way_to_the_driver() -> None:
    whole = state(3, timeline={"import": 12.5})
    assert RunState.model_validate_json(whole.model_dump_json()) == whole
    assert json.loads(whole.model_dump_json())["timeline"] == {"import": 12.5}
