"""Which API server a command talks to, and what it says when there is none."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import ServerThread, World

pytestmark = pytest.mark.timed


def test_the_local_control_plane_is_the_default_when_it_is_up(world: World) -> None:
    result = world.slipway("version")
    assert result.code == 0
    assert f"the local control plane in {world.home}, https://127.0.0.1:" in result.out


def test_kubeconfig_and_its_variable_come_first(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "empty"))
    by_flag = world.slipway("version", "--kubeconfig", str(world.kubeconfig))
    assert f"{world.kubeconfig} (--kubeconfig)" in by_flag.out
    monkeypatch.setenv("KUBECONFIG", str(world.kubeconfig))
    assert f"{world.kubeconfig} ($KUBECONFIG)" in world.slipway("version").out
    before_the_command = world.slipway("--kubeconfig", str(tmp_path / "none"), "get", "tj")
    assert before_the_command.code == 1
    assert str(tmp_path / "none") in before_the_command.err


def test_a_context_means_the_users_own_kubeconfig(world: World, tmp_path: Path) -> None:
    home = tmp_path / "nobody" / ".kube"
    home.mkdir(parents=True)
    document = yaml.safe_load(world.kubeconfig.read_text())
    document["contexts"].append(
        {"name": "elsewhere", "context": {**document["contexts"][0]["context"], "namespace": "kube-public"}}
    )
    (home / "config").write_text(yaml.safe_dump(document))
    result = world.slipway("version", "--context", "elsewhere")
    assert f"context elsewhere of {home / 'config'}" in result.out
    assert "namespace kube-public" in result.out
    unknown = world.slipway("get", "tj", "--context", "nope")
    assert unknown.code == 1
    assert "'nope'" in unknown.err
    assert "elsewhere" in unknown.err


def test_nothing_to_talk_to(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "empty"))
    result = world.slipway("get", "tj")
    assert result.code == 1
    assert "there is nothing to talk to" in result.err
    assert f"no {tmp_path / 'empty' / 'apiserver' / 'kubeconfig'}" in result.err
    assert "try: slipway up" in result.err


def test_a_local_control_plane_that_is_down(
    own_server: tuple[Path, ServerThread], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home, server = own_server
    server.stop()
    monkeypatch.setenv("SLIPWAY_HOME", str(home))
    world = World(home, monkeypatch, capfd)
    result = world.slipway("get", "tj")
    assert result.code == 1
    assert f"the local control plane in {home} does not answer at https://127.0.0.1:" in result.err
    assert "try: slipway up" in result.err
    monkeypatch.setenv("KUBECONFIG", str(world.kubeconfig))
    named = world.slipway("get", "tj")
    assert named.code == 1
    assert "the API server does not answer" in named.err
    assert f"target: {world.kubeconfig} ($KUBECONFIG), https://127.0.0.1:" in named.err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("gte", "tj"), "'gte' is not a command", "slipway get"),
        (("wait", "tj/x"), "--for", "slipway wait --help"),
        (("wait", "tj/x", "--for=ready"), "is not something to wait for", "--for=condition=Succeeded"),
        (("wait", "tj/x", "--for=delete", "--timeout=soon"), "'soon' is not a duration", "90s"),
        (("get", "tj", "-o", "xml"), "-o xml is not an output format", "yaml"),
        (("get", "tj", "-o", "jsonpath={range .items[*]}{end}"), "jsonpath", ""),
        (("describe", "tj/a", "tj"), "is not TYPE/NAME", ""),
        (("delete",), "name objects, or a file", "slipway delete tj/NAME"),
        (("logs", "tj/x", "--tail", "-3"), "below 0", "slipway logs --help"),
        (("generate", "--prompt", "x"), "name a TrainJob or a model directory", ""),
        (("-n", "x", "up"), "up takes no -n", ""),
    ],
)
def test_a_command_line_that_makes_no_sense(world: World, words: tuple[str, ...], message: str, hint: str) -> None:
    result = world.slipway(*words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert hint in result.err


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "slipway_cli.main", "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU time, because the machine may be busy with something else.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
    assert "slipway up" in result.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert not imported & {"torch", "ray", "kubernetes", "aiohttp", "pydantic", "rich", "yaml", "transformers"}


@pytest.mark.parametrize("command", ["get", "describe", "wait", "apply", "logs", "delete"])
def test_no_command_imports_torch_ray_or_kubernetes_to_start(command: str) -> None:
    code = (
        f"import sys, slipway_cli.commands.{command}\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'ray', 'kubernetes', 'transformers'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "[]\n"


def test_a_reader_that_has_seen_enough_is_no_failure(world: World) -> None:
    pipe = f"{sys.executable} -m slipway_cli.main crds | head -1"
    result = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "apiVersion: apiextensions.k8s.io/v1\n"
    assert result.stderr == ""


def test_it_is_a_kubectl_plugin(tmp_path: Path) -> None:
    plugin = Path(sys.executable).with_name("kubectl-slipway")
    environment = {**os.environ, "HOME": str(tmp_path)}
    result = subprocess.run([plugin, "--help"], capture_output=True, text=True, check=True, env=environment, timeout=30)
    assert "Usage: kubectl slipway COMMAND" in result.stdout
