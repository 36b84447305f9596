"""Where variables, files and, above all, secrets end up."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway_local.ray_runner.errors import InvalidSpec, MissingReference
from slipway_local.ray_runner.pod import ObjectRef
from slipway_local.ray_runner.rundir import RunDirs
from slipway_local.ray_runner.spec import read_rayjob
from slipway_local.ray_runner.translate import Launch, Objects, Place, references, translate

from .rayjobs import pod, rayjob

CANARY = "canary-5f1c9e"
RUN = Path("/state/runs/default_job_12345678")
PLACE = Place(RUN, Path("/venv/bin"), "scope/id", {"name": "job", "namespace": "default", "uid": "12345678-9"})
SECRET = ObjectRef("Secret", "s")
CONFIG = ObjectRef("ConfigMap", "c")
OBJECTS: Objects = {SECRET: {"token": CANARY.encode(), "other": b"o"}, CONFIG: {"size": b"7"}}


def secret_env(name: str, key: str = "token", **reference: Any) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": "s", "key": key, **reference}}}


def job_with(
    env: list[dict[str, Any]] | None = None, *, mounts: dict[str, dict[str, Any]] | None = None, **more: Any
) -> dict[str, Any]:
    head = pod(
        cpu="1", env=env or [], volumeMounts=[{"name": f"v{i}", "mountPath": p} for i, p in enumerate(mounts or {})]
    )
    head["spec"]["volumes"] = [{"name": f"v{i}", **volume} for i, volume in enumerate((mounts or {}).values())]
    return rayjob(head=head, **more)


def launch(job: dict[str, Any], objects: Objects = OBJECTS) -> Launch:
    return translate(read_rayjob(job), objects, PLACE)


def driver_environment(made: Launch, tmp_path: Path) -> dict[str, str]:
    """What a driver really gets: Ray's runtime_env, then the launch script run by a real shell."""
    place = tmp_path / "run"
    script = made.files["launch.sh"].decode().replace(str(RUN), str(place))
    RunDirs(tmp_path).create(place, made.directories, {"launch.sh": script.encode()})
    shown = subprocess.run(
        ["/bin/sh", "-c", f". '{place}/launch.sh' && env -0"],
        env={"PATH": "/usr/bin:/bin", **made.runtime_env["env_vars"]},
        capture_output=True,
        check=True,
    )
    pairs = (entry.partition("=") for entry in shown.stdout.decode().split("\0") if entry)
    return {name: value for name, _, value in pairs}


def test_plain_values_go_through_the_runtime_environment(tmp_path: Path) -> None:
    made = launch(job_with([{"name": "A", "value": "x y'$(B)\n\"z"}, {"name": "B", "value": "$(A)!$$(A)"}]))
    assert made.runtime_env["env_vars"]["A"] == "x y'$(B)\n\"z"
    assert made.runtime_env["env_vars"]["B"] == "x y'$(B)\n\"z!$(A)"
    assert driver_environment(made, tmp_path)["A"] == "x y'$(B)\n\"z"


def test_a_secret_is_in_no_place_that_ray_shows_and_yet_reaches_the_driver(tmp_path: Path) -> None:
    made = launch(job_with([secret_env("TOKEN"), {"name": "URL", "value": "http://u:$(TOKEN)@h"}]))
    shown = json.dumps([made.entrypoint, made.runtime_env])
    assert CANARY not in shown
    environment = driver_environment(made, tmp_path)
    assert environment["TOKEN"] == CANARY
    assert environment["URL"] == f"http://u:{CANARY}@h"


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=8, max_size=40))
def test_no_secret_text_ever_shows(text: str) -> None:
    job = job_with(
        [secret_env("T"), {"name": "U", "value": "a$(T)b"}, {"name": "F", "value": "/var/run/x/token"}],
        mounts={"/var/run/x": {"secret": {"secretName": "s"}}},
    )
    value = f"{CANARY}{text}"
    made = launch(job, {SECRET: {"token": value.encode()}})
    assert CANARY not in json.dumps([made.entrypoint, made.runtime_env, made.directories, sorted(made.files)])
    assert made.files["mounts/var/run/x/token"] == value.encode()


def test_secret_volumes_become_files_and_paths_to_them_follow() -> None:
    contract = {"report": {"tokenFile": "/var/run/slipway/token"}, "list": ["/var/run/slipway", "/var/run/slipwayer"]}
    made = launch(
        job_with(
            [
                {"name": "RUN", "value": json.dumps(contract)},
                {"name": "FILE", "value": "/var/run/slipway/token"},
                {"name": "NOT", "value": "/var/run/slipway2/token"},
                {"name": "HALF", "value": "see /var/run/slipway/token"},
            ],
            mounts={"/var/run/slipway/": {"secret": {"secretName": "s"}}},
        )
    )
    there = f"{RUN}/mounts/var/run/slipway"
    env = made.runtime_env["env_vars"]
    assert json.loads(env["RUN"]) == {
        "report": {"tokenFile": f"{there}/token"},
        "list": [there, "/var/run/slipwayer"],
    }
    assert env["FILE"] == f"{there}/token"
    assert env["NOT"] == "/var/run/slipway2/token"
    assert env["HALF"] == "see /var/run/slipway/token"
    assert made.files["mounts/var/run/slipway/token"] == CANARY.encode()


def test_the_files_are_for_the_owner_only_and_go_with_the_run(tmp_path: Path) -> None:
    made = launch(job_with(mounts={"/var/run/x": {"secret": {"secretName": "s"}}, "/scratch": {"emptyDir": {}}}))
    dirs = RunDirs(tmp_path)
    place = dirs.path("default", "job", "12345678-9")
    dirs.create(place, made.directories, made.files)
    found = {path: path.stat().st_mode & 0o777 for path in [place, *place.rglob("*")]}
    assert {mode for path, mode in found.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in found.items() if path.is_file()} == {0o600}
    assert (place / "mounts/scratch").is_dir()
    dirs.remove(place)
    assert not place.exists()


def test_items_projections_and_sub_paths() -> None:
    made = launch(
        job_with(
            mounts={
                "/items": {"secret": {"secretName": "s", "items": [{"key": "token", "path": "deep/t"}]}},
                "/both": {"projected": {"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}]}},
                "/gone": {"secret": {"secretName": "none", "optional": True}},
            }
        )
    )
    assert {name for name in made.files if name.startswith("mounts")} == {
        "mounts/items/deep/t",
        "mounts/both/token",
        "mounts/both/other",
        "mounts/both/size",
    }
    head = pod(volumeMounts=[{"name": "v", "mountPath": "/etc/one", "subPath": "token"}])
    head["spec"]["volumes"] = [{"name": "v", "secret": {"secretName": "s"}}]
    assert launch(rayjob(head=head)).files["mounts/etc/one"] == CANARY.encode()


def test_config_maps_fields_and_everything_of_an_object() -> None:
    env = [
        {"name": "SIZE", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "size"}}},
        {"name": "NS", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        secret_env("MAYBE", key="absent", optional=True),
    ]
    head = pod(env=env, envFrom=[{"configMapRef": {"name": "c"}, "prefix": "C_"}, {"secretRef": {"name": "s"}}])
    made = launch(rayjob(head=head))
    shown = made.runtime_env["env_vars"]
    assert {name: shown.get(name) for name in ("SIZE", "NS", "ME", "C_size", "MAYBE", "token")} == {
        "SIZE": "7",
        "NS": "default",
        "ME": "job",
        "C_size": "7",
        "MAYBE": None,
        "token": None,
    }
    assert CANARY in made.files["launch.sh"].decode()


def test_workers_have_their_own_plain_variables_and_no_secret_ones() -> None:
    job = job_with([{"name": "ROLE", "value": "head"}, {"name": "SAME", "value": "1"}])
    container = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "ROLE", "value": "worker"}, {"name": "NCCL_DEBUG", "value": "INFO"}]
    made = launch(job)
    shown = made.runtime_env["env_vars"]
    assert (shown["ROLE"], shown["SAME"], shown["NCCL_DEBUG"]) == ("worker", "1", "INFO")
    assert "export ROLE=head" in made.files["launch.sh"].decode()
    container["env"] = [secret_env("TOKEN")]
    with pytest.raises(InvalidSpec, match=r"workerGroupSpecs\[0\].*env\[0\].*mount the Secret"):
        launch(job)


def test_the_runtime_environment_wins_over_the_container() -> None:
    made = launch(job_with([{"name": "A", "value": "pod"}], runtimeEnvYAML="env_vars: {A: yaml, N: 3}"))
    assert made.runtime_env["env_vars"]["A"] == "yaml"
    assert made.runtime_env["env_vars"]["N"] == "3"
    assert "export A=" not in made.files["launch.sh"].decode()


def test_our_python_comes_first(tmp_path: Path) -> None:
    made = launch(job_with([{"name": "PATH", "value": "/opt/bin:/usr/bin:/bin"}]))
    assert driver_environment(made, tmp_path)["PATH"] == "/venv/bin:/opt/bin:/usr/bin:/bin"


def test_the_entrypoint_is_left_as_it_is() -> None:
    entrypoint = "python -m x --a 'b c' \"$(HOME)\" ; echo $?\necho done"
    assert launch(job_with(entrypoint=entrypoint)).entrypoint.endswith(f"\n{entrypoint}")


@pytest.mark.parametrize("name", ["RAY_AUTH_MODE", "RAY_ADDRESS", "SLIPWAY_RAY_JOB"])
def test_what_the_runner_sets_itself_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec, match=name):
        launch(job_with([{"name": name, "value": "x"}]))


@pytest.mark.parametrize(
    ("job", "objects", "told"),
    [
        (job_with([secret_env("A")]), {}, "Secret s does not exist"),
        (job_with([secret_env("A", key="no")]), OBJECTS, "Secret s has no key 'no'"),
        (job_with(mounts={"/x": {"secret": {"secretName": "s"}}}), {}, "Secret s does not exist"),
    ],
)
def test_what_may_still_come_is_waited_for(job: dict[str, Any], objects: Objects, told: str) -> None:
    assert references(read_rayjob(job)) == {SECRET: False}
    with pytest.raises(MissingReference, match=told):
        launch(job, objects)


def test_binary_in_a_variable_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="not text"):
        launch(job_with([secret_env("A")]), {SECRET: {"token": b"\xff\x00"}})
