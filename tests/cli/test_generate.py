"""generate, from the TrainJob's side: which model, from where, and what it says when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway_cli.commands.generate import fetch
from slipway_cli.errors import ModelError

from .conftest import World, ended, running


def test_a_job_without_a_model_says_how_far_it_is(world: World) -> None:
    world.apply("young")
    world.patch_status("young", **running(progress={"step": 3, "steps": 20, "summary": "3/20"}))
    result = world.slipway("generate", "tj/young", "--prompt", "x")
    assert result.code == 1
    assert "tj/young has no model yet: it is Training at step 3 of 20" in result.err
    assert "try: slipway wait tj/young --for=condition=Succeeded" in result.err


def test_a_failed_job_says_why_there_is_no_model(world: World) -> None:
    world.apply("sad")
    world.patch_status("sad", **ended("Failed", "UserError", "no file matches"))
    result = world.slipway("generate", "tj/sad", "--prompt", "x")
    assert result.code == 1
    assert "tj/sad has no model: Failed (UserError): no file matches" in result.err


def test_a_model_that_is_gone(world: World, tmp_path: Path) -> None:
    world.apply("gone")
    world.patch_status("gone", **ended(model={"uri": (tmp_path / "model").as_uri(), "digest": "sha256:x"}))
    result = world.slipway("generate", "tj/gone", "--prompt", "x")
    assert result.code == 1
    assert f"there is no directory {tmp_path / 'model'}" in result.err


def test_a_remote_model_is_fetched_once_per_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec  # noqa: PLC0415

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remote = fsspec.filesystem("memory")
    remote.pipe_file("/bucket/model/config.json", b"one")
    first = fetch("memory://bucket/model", "sha256:1")
    assert (first / "config.json").read_bytes() == b"one"
    remote.pipe_file("/bucket/model/config.json", b"two")
    assert fetch("memory://bucket/model", "sha256:1") == first
    assert (first / "config.json").read_bytes() == b"one"
    assert (fetch("memory://bucket/model", "sha256:2") / "config.json").read_bytes() == b"two"
    assert not list((tmp_path / "slipway" / "models").glob(".fetch-*"))
    with pytest.raises(ModelError, match="nosuch"):
        fetch("nosuch://bucket/model", "sha256:1")
