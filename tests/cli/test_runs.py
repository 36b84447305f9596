"""wait, logs and get -w while a run is played by hand: the status moves and a log grows as if a run did it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import ServerThread, World, condition, ended, running

FAST = pytest.mark.timeout(60)
pytestmark = [FAST, pytest.mark.timed]


@contextmanager
def meanwhile(*steps: Callable[[], Any], pause: float = 0.3) -> Iterator[None]:
    """Does these things one after the other while the block runs; their errors are raised at its end."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for step in steps:
                time.sleep(pause)
                step()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
    if failures:
        raise failures[0]


def progress(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "steps": 20,
        "summary": f"{step}/20",
        "loss": f"{9 - step / 4}",
        "etaSeconds": 20 - step,
        **more,
    }


# --- wait ---------------------------------------------------------------------------------------------------------


def test_wait_shows_lines_and_ends_when_the_condition_holds(world: World) -> None:
    world.apply("waited")
    with meanwhile(
        lambda: world.patch_status("waited", **running("PreparingData", "documents are read")),
        lambda: world.patch_status("waited", **running(progress=progress(3, tokensPerSecond=1500))),
        lambda: world.patch_status("waited", **ended(progress=progress(20))),
    ):
        result = world.slipway("wait", "tj/waited", "--for=condition=Succeeded", "--timeout=30s")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("waited: Pending")
    assert "waited: PreparingData: documents are read" in lines
    assert "waited: Training: step 3/20, loss 8.25, 1,500 tokens/s, ETA 17s" in lines
    assert lines[-1] == "trainjob.slipway.dev/waited condition met"


def test_wait_stops_at_once_when_the_job_has_failed(world: World) -> None:
    world.apply("failing")
    world.patch_status("failing", **running())
    with meanwhile(lambda: world.patch_status("failing", **ended("Failed", "UserError", "data.sources[0]: no file"))):
        started = time.monotonic()
        result = world.slipway("wait", "tj/failing", "--for=condition=Succeeded", "--timeout=50s")
    assert time.monotonic() - started < 10
    assert result.code == 1
    assert "Failed (UserError): data.sources[0]: no file" in result.err
    assert "try: slipway describe trainjob.slipway.dev/failing; slipway logs" in result.err
    again = world.slipway("wait", "tj/failing", "--for=condition=Succeeded")
    assert (again.code, again.out) == (1, "")
    assert world.slipway("wait", "tj/failing", "--for=condition=Failed").code == 0


def test_wait_times_out_saying_what_it_saw_last(world: World) -> None:
    world.apply("slow")
    world.patch_status("slow", **running("WaitingForResources", "2 of 4 CPUs are free"))
    result = world.slipway("wait", "tj/slow", "--for=condition=Succeeded", "--timeout=500ms")
    assert result.code == 1
    assert "not met: condition Succeeded within" in result.err
    assert "WaitingForResources: 2 of 4 CPUs are free" in result.err
    checked_once = world.slipway("wait", "tj/slow", "--for=condition=Succeeded", "--timeout=0")
    assert checked_once.code == 1


def test_wait_for_deletion_and_for_a_condition_of_what_is_deleted(world: World) -> None:
    world.apply("leaving")
    with meanwhile(lambda: world.slipway("delete", "tj/leaving")):
        pass
    assert world.slipway("wait", "tj/leaving", "--for=delete").code == 0
    job = world.apply("leaving")
    path = f"/apis/slipway.dev/v1alpha1/namespaces/default/trainjobs/{job['metadata']['name']}"
    with meanwhile(lambda: world.api(lambda client: client.raw("DELETE", path))):
        result = world.slipway("wait", "tj/leaving", "--for=condition=Succeeded", "--timeout=20s")
    assert result.code == 1
    assert "it was deleted" in result.err
    missing = world.slipway("wait", "tj/leaving", "--for=condition=Succeeded")
    assert missing.code == 1
    assert "not found" in missing.err


def test_wait_survives_a_restart_of_the_api_server(
    own_server: tuple[Path, ServerThread], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home, server = own_server
    monkeypatch.setenv("SLIPWAY_HOME", str(home))
    world = World(home, monkeypatch, capfd)
    world.apply("patient")
    with meanwhile(
        server.stop,
        server.start,
        lambda: world.patch_status("patient", **ended()),
        pause=0.5,
    ):
        result = world.slipway("wait", "tj/patient", "--for=condition=Succeeded", "--timeout=40s")
    assert result.code == 0, result.err
    assert "the API server does not answer; trying again" in result.out


def test_wait_on_a_terminal_draws_a_bar(world: World) -> None:
    world.apply("drawn")
    world.patch_status("drawn", **running(progress=progress(7, tokensPerSecond=1234)))
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "slipway_cli.main", "wait", "tj/drawn", "--for=condition=Succeeded"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        with meanwhile(lambda: None, lambda: world.patch_status("drawn", **ended(progress=progress(20))), pause=1.5):
            seen = b""
            try:
                while chunk := os.read(leader, 65536):
                    seen += chunk
            except OSError:  # the other side is closed
                pass
        assert process.wait(20) == 0
    os.close(leader)
    text = seen.decode()
    assert "7/20" in text
    assert "1,234 tokens/s" in text
    assert "\x1b[" in text
    assert "condition met" in text


# --- logs ---------------------------------------------------------------------------------------------------------


def write_log(storage: Path, attempt: int, text: str) -> None:
    file = storage / "logs" / f"attempt-{attempt:04d}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(text)


def test_logs_of_a_finished_run_come_from_its_storage(world: World, tmp_path: Path) -> None:
    world.apply("done")
    write_log(tmp_path, 1, "one\ntwo\nthree\n")
    world.patch_status("done", **ended(storage=tmp_path.as_uri()))
    assert world.slipway("logs", "tj/done").out == "one\ntwo\nthree\n"
    assert world.slipway("logs", "tj/done", "--tail", "2").out == "two\nthree\n"
    assert world.slipway("logs", "tj", "done", "-f").out == "one\ntwo\nthree\n"
    beyond = world.slipway("logs", "tj/done", "--attempt", "2")
    assert beyond.code == 1
    assert "one attempt" in beyond.err


def test_logs_of_attempts(world: World, tmp_path: Path) -> None:
    world.apply("tried")
    for number in (1, 2):
        write_log(tmp_path, number, f"attempt {number}\n")
    status = ended(storage=str(tmp_path))
    records = [{**status["attempts"][0], "number": n} for n in (1, 2)]
    world.patch_status("tried", **{**status, "attempt": 2, "attempts": records})
    newest = world.slipway("logs", "tj/tried")
    assert newest.out == "attempt 2\n"
    assert "--attempt 1" in newest.err
    assert world.slipway("logs", "tj/tried", "--attempt", "1").out == "attempt 1\n"
    assert world.slipway("logs", "tj/tried", "--attempt", "1", "-f").out == "attempt 1\n"


def test_follow_goes_over_attempts_until_the_end_and_says_what_it_waits_for(world: World, tmp_path: Path) -> None:
    world.apply("followed")
    first = {"number": 1, "startTime": "2026-01-01T00:00:00Z"}
    lost = {**first, "outcome": "Infrastructure", "message": "a worker died", "endTime": "2026-01-01T00:00:09Z"}
    second = {"number": 2, "startTime": "2026-01-01T00:00:20Z"}
    waiting = running("WaitingForResources", "2 CPUs are busy", storage=str(tmp_path))
    with meanwhile(
        lambda: world.patch_status("followed", **waiting),
        lambda: write_log(tmp_path, 1, "step 1\nste"),
        lambda: write_log(tmp_path, 1, "p 2\n"),
        lambda: world.patch_status("followed", **{**running("BackingOff", "again soon"), "attempts": [lost]}),
        lambda: world.patch_status("followed", **{**running(), "attempt": 2, "attempts": [lost, second]}),
        lambda: write_log(tmp_path, 2, "step 3\n"),
        lambda: world.patch_status("followed", **{**ended(), "attempt": 2}),
        lambda: write_log(tmp_path, 2, "last words\n"),
        pause=0.5,
    ):
        result = world.slipway("logs", "tj/followed", "-f")
    assert result.code == 0
    assert result.out == "step 1\nstep 2\nstep 3\nlast words\n"
    notes = result.err
    assert "waiting for attempt 1: WaitingForResources: 2 CPUs are busy" in notes
    assert "attempt 1 ended: Infrastructure: a worker died" in notes
    assert "Succeeded (ModelSaved): saved" in notes


def test_the_runners_copy_stands_in_until_the_run_has_a_log(world: World, tmp_path: Path) -> None:
    world.apply("early")
    world.patch_status("early", **running("Starting", "workers are coming up", storage=str(tmp_path)))
    nothing = world.slipway("logs", "tj/early")
    assert nothing.code == 1
    assert "has printed nothing yet: Starting: workers are coming up" in nothing.err
    copy = world.home / "logs" / "default" / "early-1.log"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text("ModuleNotFoundError: no module named slipway_jobs\n")
    assert "ModuleNotFoundError" in world.slipway("logs", "tj/early").out
    write_log(tmp_path, 1, "the run's own log\n")
    assert world.slipway("logs", "tj/early").out == "the run's own log\n"


def test_a_log_that_this_machine_cannot_reach(world: World) -> None:
    world.apply("faraway")
    world.patch_status("faraway", **ended(storage="nosuch://bucket/prefix"))
    result = world.slipway("logs", "tj/faraway")
    assert result.code == 1
    assert "nosuch://bucket/prefix/logs/attempt-0001.log cannot be read from this machine" in result.err


def test_logs_of_a_job_that_waits_for_its_start(world: World) -> None:
    world.apply("queued")
    world.patch_status(
        "queued",
        state="NotStarted",
        conditions=[condition("Planned", "False", "ModelNotReady", "TrainJob base has not succeeded yet")],
    )
    result = world.slipway("logs", "tj/queued")
    assert result.code == 1
    assert "ModelNotReady: TrainJob base has not succeeded yet" in result.err


# --- get -w -------------------------------------------------------------------------------------------------------


# What a shell starts in the background ignores SIGINT, and so does everything below it: these tests too, then.
HEED_INTERRUPTS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from slipway_cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_get_watch_prints_a_row_for_every_change_until_interrupted(world: World) -> None:
    world.apply("seen")
    command = [sys.executable, "-u", "-c", HEED_INTERRUPTS, "get", "tj", "seen", "-w"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[:2] == ["NAME", "STATE"]
        assert process.stdout.readline().split()[0] == "seen"
        time.sleep(0.5)  # the watch is open, or resumes from the version of the table
        world.patch_status("seen", **running(progress=progress(4)))
        assert process.stdout.readline().split()[:4] == ["seen", "Training", "4/20", "8.0"]
        world.slipway("delete", "tj/seen")
        assert process.stdout.readline().split()[0] == "seen"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert process.returncode == 130
