"""The log of an attempt: complete at the level of file descriptors, kept where the storage is, SIGKILL or not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from slipway_jobs.errors import InfrastructureError, JobError
from slipway_jobs.growing_file import GrowingFile
from slipway_jobs.run_log import RunLog, log_path
from slipway_jobs.storage import Storage


def run_script(body: str, *arguments: str) -> str:
    """Run a driver-like script in a process of its own; what it left on the terminal."""
    script = "import os, signal, subprocess, sys, time\nfrom slipway_jobs.run_log import RunLog\n"
    script += "from slipway_jobs.storage import Storage\n" + textwrap.dedent(body)
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output, _ = process.communicate(timeout=60)
    return output


def test_everything_on_fds_1_and_2_is_kept(tmp_path: Path) -> None:
    output = run_script(
        """
        print("before")
        log = RunLog(Storage(sys.argv[1]), 3)
        print("from print")
        print("from stderr", file=sys.stderr)
        os.write(1, b"from native code\\n")
        subprocess.run(["sh", "-c", "echo from a subprocess; echo and its stderr >&2"], check=True)
        log.close()
        print("after")
        """,
        str(tmp_path),
    )
    kept = (tmp_path / log_path(3)).read_text().splitlines()
    assert kept == ["from print", "from stderr", "from native code", "from a subprocess", "and its stderr"]
    assert output.splitlines() == ["before", *kept, "after"]
    assert log_path(3) == "logs/attempt-0003.log"


def test_a_killed_driver_loses_no_line(tmp_path: Path) -> None:
    run_script(
        """
        RunLog(Storage(sys.argv[1]), 1)
        for number in range(20000):
            print("line", number)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        str(tmp_path),
    )
    deadline = time.monotonic() + 5
    lines: list[str] = []
    while len(lines) < 20000 and time.monotonic() < deadline:
        time.sleep(0.05)
        lines = (tmp_path / log_path(1)).read_text().splitlines()
    assert lines[-1] == "line 19999"
    assert len(lines) == 20000


def test_a_signal_to_the_process_group_does_not_take_the_copier(tmp_path: Path) -> None:
    run_script(
        """
        os.setpgrp()
        signal.signal(signal.SIGTERM, lambda *_: None)
        RunLog(Storage(sys.argv[1]), 1)
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(0.2)
        print("last words")
        os.killpg(os.getpgrp(), signal.SIGKILL)
        """,
        str(tmp_path),
    )
    deadline = time.monotonic() + 5
    while "last words" not in (tmp_path / log_path(1)).read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "last words" in (tmp_path / log_path(1)).read_text()


def test_the_same_attempt_appends(tmp_path: Path) -> None:
    for word in ("first", "second"):
        run_script("log = RunLog(Storage(sys.argv[1]), 1); print(sys.argv[2]); log.close()", str(tmp_path), word)
    assert (tmp_path / log_path(1)).read_text() == "first\nsecond\n"


def test_a_terminal_that_is_gone_does_not_cost_the_file(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom slipway_jobs.run_log import RunLog\nfrom slipway_jobs.storage import Storage\n"
        "log = RunLog(Storage(sys.argv[1]), 1)\nprint('one', flush=True)\ntime.sleep(0.5)\n"
        "print('two', flush=True)\nprint('three', flush=True)\nlog.close()\n"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    os.read(reader, 100)
    os.close(reader)
    process.wait(timeout=30)
    assert (tmp_path / log_path(1)).read_text() == "one\ntwo\nthree\n"


def test_an_object_store_gets_the_log_while_it_grows_and_at_the_end() -> None:
    output = run_script(
        """
        import fsspec
        log = RunLog(Storage("memory://bucket/job"), 1, every_seconds=0.2)
        files = fsspec.filesystem("memory")
        print("early", flush=True)
        deadline = time.monotonic() + 5
        during = b""
        while not during and time.monotonic() < deadline:
            time.sleep(0.05)
            if files.exists("/bucket/job/logs/attempt-0001.log"):
                during = files.cat("/bucket/job/logs/attempt-0001.log")
        print("late", flush=True)
        log.close()
        print(during, files.cat("/bucket/job/logs/attempt-0001.log"))
        """
    )
    assert output.splitlines()[-1] == r"b'early\n' b'early\nlate\n'"


def test_an_object_store_that_fails_is_mentioned_once_and_forgiven(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(Storage):
        def write_bytes_atomic(self, relative: str, data: bytes) -> None:
            raise InfrastructureError("StorageFailed", "the bucket is on fire")

    file = GrowingFile(Broken("memory://broken"), "logs/x", every_seconds=60)
    for text in ("a", "b"):
        with file.path.open("a") as stream:
            stream.write(text)
        file.send()
    file.close()
    assert capfd.readouterr().err.count("the bucket is on fire") == 1


def test_a_log_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the directory should be")
    with pytest.raises((JobError, FileNotFoundError), match="logs"):
        RunLog(Storage(str(tmp_path)), 1)
