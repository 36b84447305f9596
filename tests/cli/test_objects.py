"""apply, get, describe, patch, delete against a real API server, judged by what the user reads and what is stored."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_operator.kube.errors import NotFound

from .conftest import MANIFEST, World, condition, ended, running


def test_apply_says_created_configured_unchanged(world: World) -> None:
    text = MANIFEST.format(name="words", steps=20)
    assert world.slipway("apply", "-f", "-", stdin=text).out == "trainjob.slipway.dev/words created\n"
    assert world.slipway("apply", "-f", "-", stdin=text).out == "trainjob.slipway.dev/words unchanged\n"
    changed = text + "  retry: {limit: 7}\n"
    assert world.slipway("apply", "-f", "-", stdin=changed).out == "trainjob.slipway.dev/words configured\n"
    stored = world.get("words")
    assert stored["spec"]["retry"]["limit"] == 7
    assert {entry["manager"] for entry in stored["metadata"]["managedFields"]} == {"slipway-cli"}


def test_apply_dry_run_stores_nothing(world: World) -> None:
    text = MANIFEST.format(name="dry", steps=20)
    result = world.slipway("apply", "--dry-run", "-f", "-", stdin=text)
    assert result.out == "trainjob.slipway.dev/dry created (dry run)\n"
    with pytest.raises(NotFound):
        world.get("dry")
    world.apply("dry")
    changed = world.slipway("apply", "--dry-run", "-f", "-", stdin=text + "  suspend: true\n")
    assert changed.out == "trainjob.slipway.dev/dry configured (dry run)\n"
    assert world.get("dry")["spec"]["suspend"] is False


def test_apply_reads_directories_lists_and_json(world: World, tmp_path: Path) -> None:
    one, two, three = (yaml.safe_load(MANIFEST.format(name=f"many-{n}", steps=5)) for n in "abc")
    (tmp_path / "1.yaml").write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [one, two]}))
    (tmp_path / "2.json").write_text(json.dumps(three))
    (tmp_path / "notes.txt").write_text("not a manifest")
    result = world.slipway("apply", "-f", str(tmp_path))
    assert result.out.split() == [word for n in "abc" for word in (f"trainjob.slipway.dev/many-{n}", "created")]


def test_apply_of_any_other_kind(world: World) -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {a: b}\n"
    assert world.slipway("apply", "-f", "-", stdin=text).out == "configmap/notes created\n"
    assert world.slipway("get", "cm", "notes", "-o", "jsonpath={.data.a}").out == "b"


def test_a_wrong_manifest_is_named_by_file_document_and_field_and_nothing_is_sent(world: World, tmp_path: Path) -> None:
    good = MANIFEST.format(name="never", steps=20)
    bad = MANIFEST.format(name="bad", steps=0) + "  retries: 3\n  workers: {count: 3}\n"
    file = tmp_path / "jobs.yaml"
    file.write_text(f"{good}---\n{bad}")
    result = world.slipway("apply", "-f", str(file))
    assert result.code == 1
    where = f"{file}: document 2 (line {len(good.splitlines()) + 2}): TrainJob bad"
    assert f"{where}: spec.training.steps: Invalid value: 0" in result.err
    assert f"{where}: spec.retries: unknown field" in result.err
    with pytest.raises(NotFound):
        world.get("never")


def test_contradicting_fields_are_refused_with_the_rule(world: World) -> None:
    text = MANIFEST.format(name="odd", steps=20) + "  workers: {count: 3}\n"
    result = world.slipway("apply", "-f", "-", stdin=text)
    assert result.code == 1
    message = "training.globalBatchSize must be divisible by training.microBatchSize x workers.count"
    assert f"spec.training: Invalid value: {message}" in result.err


def test_what_only_the_server_can_refuse_names_the_manifest_and_the_target(world: World) -> None:
    world.apply("frozen", steps=20)
    result = world.slipway("apply", "-f", "-", stdin=MANIFEST.format(name="frozen", steps=21))
    assert result.code == 1
    assert "standard input: TrainJob frozen: " in result.err
    assert "training is immutable" in result.err
    assert f"target: the local control plane in {world.home}" in result.err
    assert "try: slipway delete" in result.err


def test_a_field_of_another_manager_is_taken_only_with_force(world: World) -> None:
    world.apply("shared")
    world.slipway("patch", "tj/shared", "-p", '{"spec": {"suspend": true}}')
    text = MANIFEST.format(name="shared", steps=20) + "  suspend: false\n"
    refused = world.slipway("apply", "-f", "-", stdin=text)
    assert refused.code == 1
    assert ".spec.suspend" in refused.err
    assert "--force-conflicts" in refused.err
    assert world.get("shared")["spec"]["suspend"] is True
    assert world.slipway("apply", "--force-conflicts", "-f", "-", stdin=text).code == 0
    assert world.get("shared")["spec"]["suspend"] is False


def test_namespace_of_the_manifest_and_of_the_command_line(world: World) -> None:
    text = MANIFEST.format(name="lost", steps=20).replace("  name: lost\n", "  name: lost\n  namespace: default\n")
    result = world.slipway("apply", "-n", "other", "-f", "-", stdin=text)
    assert result.code == 1
    assert "metadata.namespace is default, but -n says other" in result.err


def test_get_prints_the_servers_columns(world: World) -> None:
    world.apply("columns")
    progress = {"step": 5, "steps": 20, "summary": "5/20", "loss": "3.125", "tokensPerSecond": 9000}
    world.patch_status("columns", **running(progress=progress, plan={**PLAN, "strategy": "fsdp(shard=2, bf16)"}))
    header, row = world.slipway("get", "tj", "columns").out.splitlines()
    assert header.split() == ["NAME", "STATE", "STEP", "LOSS", "TOKENS/S", "ATTEMPT", "AGE"]
    assert row.split()[:6] == ["columns", "Training", "5/20", "3.125", "9000", "1"]
    assert header.index("STATE") == row.index("Training")
    wide = world.slipway("get", "tj/columns", "-o", "wide").out
    assert "STRATEGY" in wide
    assert "fsdp(shard=2, bf16)" in wide
    everywhere = world.slipway("get", "trainjobs", "-A").out.splitlines()
    assert everywhere[0].split()[:2] == ["NAMESPACE", "NAME"]
    assert any(line.split()[:2] == ["default", "columns"] for line in everywhere)
    assert "NAME" not in world.slipway("get", "tj", "columns", "--no-headers").out


PLAN: dict[str, Any] = {
    "strategy": "ddp",
    "worldSize": 2,
    "device": "cpu",
    "backend": "gloo",
    "parameters": 1000,
    "parametersPerRank": 500,
    "microBatchSize": 4,
    "accumulationSteps": 2,
    "trainTokens": 123456,
    "dataDigest": "sha256:abc",
}


def test_get_in_every_format(world: World) -> None:
    world.apply("formats")
    obj = json.loads(world.slipway("get", "tj/formats", "-o", "json").out)
    assert obj["kind"] == "TrainJob"
    assert "managedFields" not in obj["metadata"]
    assert yaml.safe_load(world.slipway("get", "tj/formats", "-o", "yaml").out) == obj
    assert world.slipway("get", "tj/formats", "-o", "name").out == "trainjob.slipway.dev/formats\n"
    listed = json.loads(world.slipway("get", "tj", "formats", "-o", "json", "-l", "").out)
    assert listed["metadata"]["name"] == "formats"
    many = json.loads(world.slipway("get", "tj", "-o", "json").out)
    assert many["kind"] == "List"
    assert "formats" in [item["metadata"]["name"] for item in many["items"]]
    two = world.slipway("get", "tj/formats", "-o", 'jsonpath={.metadata.name}{"\\t"}{.spec.training.steps}').out
    assert two == "formats\t20"


@pytest.mark.parametrize("word", ["tj", "trainjob", "trainjobs", "TrainJob", "trainjob.slipway.dev", "slipway"])
def test_every_word_for_a_trainjob(world: World, word: str) -> None:
    world.apply("named")
    assert "named" in world.slipway("get", word).out


def test_labels_select(world: World) -> None:
    world.apply("labelled")
    world.slipway("patch", "tj", "labelled", "--type=merge", "-p", '{"metadata": {"labels": {"team": "a"}}}')
    names = world.slipway("get", "tj", "-l", "team=a", "-o", "name").out
    assert names == "trainjob.slipway.dev/labelled\n"


def test_several_types_carry_their_type_before_the_name(world: World) -> None:
    world.apply("typed")
    out = world.slipway("get", "tj,configmaps").out
    assert "trainjob.slipway.dev/typed" in out


def test_what_does_not_exist_is_an_error_with_the_target(world: World) -> None:
    result = world.slipway("get", "tj/nowhere")
    assert (result.code, result.out) == (1, "")
    assert 'trainjobs.slipway.dev "nowhere" not found' in result.err
    assert f"target: the local control plane in {world.home}, https://127.0.0.1:" in result.err
    assert world.slipway("get", "tj/nowhere", "--ignore-not-found").code == 0
    assert world.slipway("get", "tj/nowhere", "-o", "name").code == 1
    kind = world.slipway("get", "bananas")
    assert kind.code == 1
    assert "no resource 'bananas'" in kind.err


def test_an_empty_list_says_so(world: World) -> None:
    result = world.slipway("get", "tj", "-n", "kube-public")
    assert (result.code, result.out) == (0, "")
    assert "No resources found in namespace kube-public." in result.err


def test_describe_tells_a_job(world: World) -> None:
    job = world.apply("told")
    world.event(job, "AttemptCreated", "created RayJob told-1")
    world.patch_status(
        "told",
        **ended(
            plan=PLAN,
            storage="/somewhere",
            progress={"step": 20, "steps": 20, "summary": "20/20", "loss": "2.5", "tokensPerSecond": 12345},
            checkpoint={"step": 20, "uri": "/somewhere/checkpoints/step-20", "time": "2026-01-01T00:00:00Z"},
            skippedCheckpoints=[{"uri": "/somewhere/checkpoints/step-10", "reason": "digest of a.bin differs"}],
            model={"uri": "/somewhere/model", "digest": "sha256:m", "perplexity": "12.5", "initialPerplexity": "512"},
        ),
    )
    out = world.slipway("describe", "tj/told").out
    for text in (
        "fresh llama: 2 layers x 64 wide, 4 heads",
        "20 steps, batches of 16 sequences, 4 at a time, bf16",
        "python://stdlib (text)",
        "ModelSaved",
        "1,000, at most 500 per rank",
        "123,456 tokens to train on",
        "12,345 tokens/s",
        "/somewhere/checkpoints/step-10: digest of a.bin differs",
        "1m30s",
        "12.5, before training 512",
        "AttemptCreated",
        "created RayJob told-1",
    ):
        assert text in out, text
    again = world.slipway("describe", "trainjob", "told").out
    assert re.sub(r"\d", "", again) == re.sub(r"\d", "", out)  # ages tick between the two


def test_a_message_cannot_steer_the_terminal(world: World) -> None:
    world.apply("hostile")
    nasty = "\x1b]0;owned\x07\x1b[2J"
    world.patch_status("hostile", state=f"x{nasty}", conditions=[condition("Running", "False", "X", nasty)])
    for words in (("describe", "tj/hostile"), ("get", "tj", "hostile")):
        assert "\x1b" not in world.slipway(*words).out


def test_an_error_cannot_steer_the_terminal(world: World) -> None:
    result = world.slipway("get", "tj/\x1b[2J")
    assert result.code == 1
    assert "\x1b" not in result.err


def test_names_cannot_leave_their_place_in_the_path(world: World) -> None:
    for words in (("get", "tj/.."), ("get", "tj", ".."), ("delete", "tj/.")):
        result = world.slipway(*words)
        assert result.code == 2
        assert "are no names" in result.err


def test_describe_of_another_kind_hides_secrets(world: World) -> None:
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: key}\nstringData: {token: hunter2}\n"
    world.slipway("apply", "-f", "-", stdin=secret)
    out = world.slipway("describe", "secret", "key").out
    assert "characters" in out
    assert "hunter2" not in out
    assert "aHVudGVyMg" not in out


def test_delete_by_name_and_by_file(world: World, tmp_path: Path) -> None:
    world.apply("doomed")
    assert world.slipway("delete", "tj/doomed").out == 'trainjob.slipway.dev "doomed" deleted\n'
    with pytest.raises(NotFound):
        world.get("doomed")
    again = world.slipway("delete", "tj/doomed")
    assert again.code == 1
    assert "not found" in again.err
    assert world.slipway("delete", "tj/doomed", "--ignore-not-found").code == 0
    world.apply("doomed")
    file = tmp_path / "job.yaml"
    file.write_text(MANIFEST.format(name="doomed", steps=20))
    assert world.slipway("delete", "-f", str(file), "--wait").code == 0
    with pytest.raises(NotFound):
        world.get("doomed")


def test_delete_waits_until_finalizers_are_done(world: World) -> None:
    world.apply("held")
    world.slipway("patch", "tj/held", "-p", '{"metadata": {"finalizers": ["example.com/hold"]}}')
    late = world.slipway("delete", "tj/held", "--timeout=1s")
    assert late.code == 1
    assert "not deleted within 1s" in late.err
    at_once = world.slipway("delete", "tj/held", "--wait=false")
    assert at_once.code == 0
    assert "Deleting:         since" in world.slipway("describe", "tj/held").out
    world.slipway("patch", "tj/held", "-p", '{"metadata": {"finalizers": null}}')
    with pytest.raises(NotFound):
        world.get("held")


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kubectl_prints_the_same_table(world: World) -> None:
    world.apply("alike")
    world.patch_status("alike", **running())
    command = ["kubectl", "--kubeconfig", str(world.kubeconfig), "get", "tj", "alike", "--no-headers"]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    ours = world.slipway("get", "tj", "alike", "--no-headers").out
    assert ours.split()[:-1] == theirs.split()[:-1]  # the age may tick between the two
