"""The `timed` marker: a failure on a machine that stood still is run again, any other failure stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timed

PROGRAM = """
import pathlib, signal, subprocess, os, time, pytest

HERE = pathlib.Path(__file__).parent

@pytest.mark.timed
def test_it():
    runs = HERE / "runs"
    runs.write_text(str(int(runs.read_text()) + 1) if runs.exists() else "1")
    if {stalled} and runs.read_text() == "1":
        # The whole process stands still, as on a machine that is held up.
        subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -STOP {{os.getpid()}}; sleep 0.6; kill -CONT {{os.getpid()}}"])
    before = time.monotonic()
    time.sleep(0.3)
    assert time.monotonic() - before < 0.45 and not {wrong}
"""


@pytest.mark.parametrize(
    ("stalled", "wrong", "code", "runs"), [(False, False, 0, 1), (True, False, 0, 2), (False, True, 1, 1)]
)
def test_only_a_failure_on_a_machine_that_stood_still_is_run_again(
    tmp_path: Path, stalled: bool, wrong: bool, code: int, runs: int
) -> None:
    (tmp_path / "conftest.py").write_text((Path(__file__).parents[1] / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(PROGRAM.format(stalled=stalled, wrong=wrong))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = timed\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout
    assert (tmp_path / "runs").read_text() == str(runs)
