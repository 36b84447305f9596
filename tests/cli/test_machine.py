"""up, down, status, kubeconfig, validate, crds, completion: what is about this machine and needs no server.

The real `slipway up`, with Ray, is tested in tests/e2e.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_api.crd import crds
from slipway_cli.commands.up import next_steps
from slipway_local.layout import Layout
from slipway_local.service_list import list_services
from slipway_operator.kube.resource import RAYSERVICES

from .conftest import MANIFEST, World

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nothing(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home in which nothing was ever started."""
    home = tmp_path / "empty"
    monkeypatch.setenv("SLIPWAY_HOME", str(home))
    return home


def test_status_and_down_where_nothing_runs(world: World, nothing: Path) -> None:
    status = world.slipway("status")
    assert status.code == 1
    assert status.out == f"Slipway is down ({nothing}). To start it: slipway up\n"
    down = world.slipway("down")
    assert (down.code, down.out) == (0, "Slipway was not running.\n")


def test_purge_leaves_a_folder_alone_that_is_not_ours(world: World, nothing: Path) -> None:
    nothing.mkdir()
    (nothing / "thesis.tex").write_text("years of work")
    result = world.slipway("down", "--purge")
    assert (nothing / "thesis.tex").exists()
    assert "is not ours to delete" in result.out


def test_status_names_what_is_not_ready(world: World) -> None:
    result = world.slipway("status")  # an API server alone, without a supervisor
    assert result.code == 1


def test_services_are_listed_with_their_url_or_what_is_wrong(world: World) -> None:
    def made(name: str, status: str, **annotations: str) -> dict[str, Any]:
        return {
            "metadata": {"name": name, "namespace": "default", "annotations": annotations},
            "status": {"conditions": [{"type": "Ready", "status": status, "message": "no room\nat all"}]},
        }

    def create(obj: dict[str, Any]) -> None:
        created = world.api(lambda client: client.create(RAYSERVICES, obj))
        patch = {"status": obj["status"]}
        world.api(
            lambda client: client.merge_patch(
                RAYSERVICES, "default", created["metadata"]["name"], patch, subresource="status"
            )
        )

    create(made("good", "True", **{"slipway.dev/url": "http://127.0.0.1:1/default/good"}))
    create(made("waits", "False"))
    good, waits = asyncio.run(list_services(Layout(world.home)))
    assert (good.name, good.ready, good.url, good.problem) == (
        "default/good",
        True,
        "http://127.0.0.1:1/default/good",
        "",
    )
    assert (waits.ready, waits.url, waits.problem) == (False, "", "no room\nat all")


def test_kubeconfig(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert world.slipway("kubeconfig").out == f"{world.kubeconfig}\n"
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "empty"))
    missing = world.slipway("kubeconfig")
    assert missing.code == 1
    assert "try: slipway up" in missing.err


def test_next_steps_are_commands_that_exist(world: World) -> None:
    for has_kubectl in (True, False):
        text = next_steps("/x/kubeconfig", has_kubectl=has_kubectl)
        assert ("kubectl apply -f examples/trainjob.yaml" in text) is has_kubectl
        assert ("slipway apply -f examples/trainjob.yaml" in text) is not has_kubectl
    assert (ROOT / "examples" / "trainjob.yaml").is_file()


def test_the_examples_are_valid(world: World, nothing: Path) -> None:
    result = world.slipway("validate", "-f", str(ROOT / "examples"))
    assert result.code == 0, result.err
    assert "TrainJob stdlib-lm: valid" in result.out
    assert "TrainJob stdlib-zero3: valid" in result.out


def test_the_held_out_modules_of_the_example_are_never_trained_on() -> None:
    spec = yaml.safe_load((ROOT / "examples" / "trainjob.yaml").read_text())["spec"]
    (train,), (held_out,) = spec["data"]["sources"], spec["data"]["evalSources"]
    assert {pattern.removesuffix("/*.py") for pattern in held_out["include"]} <= set(train["exclude"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("  name: NOT_A_NAME", "metadata.name: Invalid value"),
        (f"  name: {'n' * 41}", "metadata.name must have at most 40 characters"),
    ],
)
def test_validate_finds_what_the_server_would(world: World, nothing: Path, change: str, complaint: str) -> None:
    text = MANIFEST.format(name="fine", steps=20)
    assert world.slipway("validate", "-f", "-", stdin=text).code == 0
    result = world.slipway("validate", "-f", "-", stdin=text.replace("  name: fine", change))
    assert result.code == 1
    assert complaint in result.err


def test_validate_says_what_it_did_not_check(world: World, nothing: Path) -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
    assert "not checked" in world.slipway("validate", "-f", "-", stdin=text).out
    unknown = world.slipway("validate", "-f", "-", stdin=text.replace("v1", "slipway.dev/v1alpha1"))
    assert unknown.code == 1
    assert "there is no ConfigMap in slipway.dev/v1alpha1" in unknown.err


def test_validate_and_the_server_complain_alike(world: World) -> None:
    text = MANIFEST.format(name="alike", steps=0) + "  workers: {count: 3}\n"
    ours = world.slipway("validate", "-f", "-", stdin=text).err
    body = yaml.safe_load(text)

    from slipway_operator.kube.errors import Invalid  # noqa: PLC0415
    from slipway_operator.kube.resource import TRAINJOBS  # noqa: PLC0415

    body["metadata"]["namespace"] = "default"
    with pytest.raises(Invalid) as caught:
        world.api(lambda client: client.create(TRAINJOBS, body))
    complaints = [line.split("TrainJob alike: ")[1] for line in ours.splitlines() if "TrainJob alike: " in line]
    assert complaints
    for complaint in complaints:
        assert complaint in caught.value.message


def test_crds_are_the_generated_ones(world: World, nothing: Path) -> None:
    assert list(yaml.safe_load_all(world.slipway("crds").out)) == crds()


def complete(script: str, *words: str) -> set[str]:
    """What bash offers after these words."""
    quoted = " ".join(f"'{word}'" for word in words)
    run = f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _slipway; printf "%s\\n" "${{COMPREPLY[@]}}"'
    path = f"PATH={Path(sys.executable).parent}:$PATH\ncompopt() {{ :; }}\n"
    result = subprocess.run(["bash", "-c", path + run], capture_output=True, text=True, timeout=60, check=False)
    return set(result.stdout.split())


def test_completion_in_bash(world: World) -> None:
    script = world.slipway("completion", "bash").out
    assert complete(script, "slipway", "de") == {"describe", "delete"}
    assert {"--tail", "--follow"} <= complete(script, "slipway", "logs", "tj/x", "-")
    assert complete(script, "slipway", "-n", "x", "wait", "--fo") == {"--for"}
    world.apply("completed")
    assert "tj/completed" in complete(script, "slipway", "describe", "tj/comp")
    assert "bashcompinit" in world.slipway("completion", "zsh").out
