"""Runs that end before any worker: the exit code, and one sentence that says what to change. No Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slipway_api.run import EvalRunSpec, ExitCode
from slipway_jobs.model_files import count_parameters, directory_digest

from .conftest import Run, make_model, make_run, source

LM = [{"name": "s", "languageModeling": {}, "data": {"sources": [{"uri": "/nowhere"}]}}]


def ended(spec: EvalRunSpec) -> tuple[int, str]:
    run = Run(spec, {"RAY_ADDRESS": "127.0.0.1:1", "PATH": os.environ["PATH"]})
    return run.wait(60), run.text()


def test_a_model_without_safetensors(tmp_path: Path) -> None:
    model = tmp_path / "pickled"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").write_bytes(b"\x80")
    code, text = ended(make_run(tmp_path, LM, model))
    assert code == ExitCode.USER_ERROR
    assert "NoSafetensors" in text and "pytorch_model.bin" in text


def test_a_baseline_is_named_as_such(tmp_path: Path, model_dir: Path) -> None:
    code, text = ended(make_run(tmp_path, LM, model_dir, baseline={"uri": str(tmp_path / "gone")}))
    assert code == ExitCode.USER_ERROR
    assert "ModelNotFound" in text and "baseline: there is no directory" in text


def test_every_suite_without_data(tmp_path: Path, model_dir: Path) -> None:
    second = {"name": "t", "languageModeling": {}, "data": source(tmp_path / "gone")}
    code, text = ended(make_run(tmp_path, [*LM, second], model_dir))
    assert code == ExitCode.USER_ERROR
    assert "all 2 suites failed; the first, s: suites[0].data.sources[0].uri: /nowhere does not exist" in text


def test_a_contract_that_is_none() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slipway_jobs.evaluate"],
        env=os.environ | {"SLIPWAY_RUN": '{"kind": "evaljobs"}'},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.USER_ERROR
    assert "SLIPWAY_RUN: namespace" in done.stderr


# --- what a model is ----------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_lineage_where_files_are_what_it_says(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "m")
    plain = directory_digest(directory)
    names = sorted(path.name for path in directory.iterdir())
    lineage: dict[str, Any] = {"files": [{"path": name} for name in names]}
    (directory / "slipway.json").write_text(json.dumps(lineage))
    assert directory_digest(directory) == plain
    (directory / "README.md").write_text("about")
    assert directory_digest(directory) == plain
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(config + " ")
    assert directory_digest(directory) != plain
    (directory / "config.json").write_text(config)
    (directory / "slipway.json").write_text(json.dumps({"files": [{"path": "config.json"}]}))
    assert directory_digest(directory) == plain  # a lineage that leaves the weights out is not believed


@pytest.mark.parametrize("poison", ["", "Z"])
def test_parameters_are_counted_without_reading_them(tmp_path: Path, poison: str) -> None:
    from .conftest import load  # noqa: PLC0415

    directory = make_model(tmp_path / "m", poison=poison)
    assert count_parameters(directory) == load(directory).parameters
