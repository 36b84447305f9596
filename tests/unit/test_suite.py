"""tests/suite.py: which failures get another run, and what comes of it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "suite.py"
_found = importlib.util.spec_from_file_location("suite", SCRIPT)
assert _found is not None
assert _found.loader is not None
suite = importlib.util.module_from_spec(_found)
_found.loader.exec_module(suite)


@pytest.mark.parametrize(
    ("code", "failed", "again"),
    [
        (1, ["tests/unit/test_x.py::test_y"], True),
        (1, [f"tests/unit/test_x.py::test_{n}" for n in range(suite.FEW)], True),
        (1, [f"tests/unit/test_x.py::test_{n}" for n in range(suite.FEW + 1)], False),
        (1, ["tests/unit/test_x.py::test_y", "tests/e2e/test_kills.py::test_z[fsdp]"], False),
        (1, [], False),  # it says that some failed, and not which
        (2, ["tests/unit/test_x.py::test_y"], False),  # interrupted: others were never run
        (3, ["tests/unit/test_x.py::test_y"], False),  # pytest itself failed
        (0, [], False),
    ],
)
def test_which_failures_get_another_run(code: int, failed: list[str], again: bool) -> None:
    assert suite.once_more(code, failed) is again


def test_those_whose_failures_count_exist() -> None:
    assert all((SCRIPT.parents[1] / name).is_file() for name in suite.EACH_COUNTS)


def test_an_unreadable_record_is_none(tmp_path: Path) -> None:
    assert suite.failed_tests(tmp_path) == []
    (tmp_path / "v" / "cache").mkdir(parents=True)
    (tmp_path / "v" / "cache" / "lastfailed").write_text("{")
    assert suite.failed_tests(tmp_path) == []


FIRST_TIME = """
from pathlib import Path
def test_fails_{how}():
    before = Path("seen").exists()
    Path("seen").touch()
    assert {expression}
def test_good():
    with open("good", "a") as file:
        file.write("x")
"""
OTHER = """
def test_good():
    with open("other", "a") as file:
        file.write("x")
"""


@pytest.mark.parametrize(("how", "expression", "code"), [("once", "before", 0), ("always", "False", 1)])
def test_what_fails_alone_has_failed(tmp_path: Path, how: str, expression: str, code: int) -> None:
    (tmp_path / "test_some.py").write_text(FIRST_TIME.format(how=how, expression=expression))
    (tmp_path / "test_other.py").write_text(OTHER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, SCRIPT, "-q"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert f"test_some.py::test_fails_{how}" in done.stdout.split("Once more, their files alone:")[1]
    assert ("TO BE MENDED" in done.stdout) is (code == 0)
    assert (tmp_path / "good").read_text() == "xx", "the file is a story"
    assert (tmp_path / "other").read_text() == "x", "what passed is not run again"


def test_files_are_run_whole_and_once() -> None:
    assert suite.files_of(["tests/b.py::test_y[2]", "tests/a.py::A::test_x", "tests/b.py::test_y[1]"]) == [
        "tests/a.py",
        "tests/b.py",
    ]
