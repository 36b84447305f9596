"""From a trained model to an endpoint, and from one version to the next without anybody noticing."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from slipway_jobs.compress.kernels import int8_linear
from slipway_local.processes import marked
from slipway_local.ray_runner.translate import SERVICE_MARK

from .conftest import Stack, condition, train_job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

NAME = "endpoint"
STEPS = {"steps": 3, "globalBatchSize": 2, "microBatchSize": 2, "precision": "fp32"}
ONE = {"count": 1, "resources": {"cpu": "1", "memory": "512Mi"}}


def deployment(model: dict[str, Any], **changes: Any) -> dict[str, Any]:
    spec = {
        "model": model,
        "engine": {"transformers": {"precision": "fp32", "maxBatch": 4, "maxContextTokens": 128}},
        "replicas": {"resources": {"cpu": "500m", "memory": "512Mi"}},
        "generation": {"maxTokens": 8},
        "canary": {"steps": [{"weight": 50, "pauseSeconds": 2}], "progressDeadlineSeconds": 120},
    }
    metadata = {"name": NAME, "namespace": "default"}
    return {"apiVersion": "slipway.dev/v1alpha1", "kind": "Deployment", "metadata": metadata, "spec": spec | changes}


@pytest.fixture(scope="module")
def served(stack: Stack, corpus: Path) -> Iterator[dict[str, Any]]:
    """Two small models, the first of them behind an endpoint; its status."""
    for seed, name in enumerate(("first", "second")):
        job = train_job(name, corpus, training=STEPS | {"seed": seed}, workers=ONE, strategy={"ddp": {}})
        del job["spec"]["data"]["evalSources"]
        stack.apply(job)
    for name in ("first", "second"):
        stack.finish(name)
    stack.apply(deployment({"trainJob": {"name": "first"}}))
    yield stack.wait(NAME, lambda s: condition(s, "Available")[0] == "True", 150, "deployments")
    stack.kubectl("delete", "deployments.slipway.dev", NAME, timeout=60)


def ask(url: str, timeout: float = 30, **changes: Any) -> tuple[int, dict[str, Any], str]:
    """(status, body, version) of a completion."""
    body = {"prompt": "Node 1 ", "max_tokens": 4, "temperature": 0} | changes
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.status, json.load(answer), answer.headers["x-slipway-version"]


def test_the_official_client(stack: Stack, served: dict[str, Any]) -> None:
    client = openai.OpenAI(base_url=f"{served['url']}/v1", api_key="none", max_retries=0, timeout=60)
    assert [model.id for model in client.models.list()] == [NAME]
    whole = client.completions.create(model=NAME, prompt="Node 1 ", max_tokens=8, temperature=0)
    pieces = client.completions.create(model=NAME, prompt="Node 1 ", max_tokens=8, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert [process.nice() for process in engines(stack)] == [0]  # training, at 15, gives way
    assert len(client.embeddings.create(model=NAME, input="Node 1").data[0].embedding) == 64
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.completions.create(model="other", prompt="x")


def test_columns_and_conditions(stack: Stack, served: dict[str, Any]) -> None:
    table = stack.kubectl("get", "sdeploy", NAME)
    assert table.split("\n")[0].split() == ["NAME", "READY", "VERSION", "WEIGHT", "GATE", "URL", "AGE"]
    assert table.split("\n")[1].split()[:5] == [NAME, "True", served["version"], "100", "True"]
    assert served["url"].startswith("http://127.0.0.1:")
    assert condition(served, "GatePassed")[1] == "NoRequirements"
    assert served["stable"]["digest"] == stack.status("first")["model"]["digest"]


def engines(stack: Stack) -> list[psutil.Process]:
    """The processes that hold a model."""
    uid = stack.kubectl("get", "rayservices.ray.io", NAME, "-o", "jsonpath={.metadata.uid}")
    pids = [ref.pid for ref, mark in marked(SERVICE_MARK).items() if mark.endswith(f"/{uid}")]
    return [process for process in map(psutil.Process, pids) if ":Engine" in " ".join(process.cmdline())]


def test_a_killed_replica_is_an_error_in_openais_shape_until_another_answers(
    stack: Stack, served: dict[str, Any]
) -> None:
    (before,) = engines(stack)
    client = openai.OpenAI(base_url=f"{served['url']}/v1", api_key="none", max_retries=0, timeout=20)
    pieces = client.completions.create(model=NAME, prompt="Node 1 ", max_tokens=100, stream=True)
    next(iter(pieces))
    before.kill()
    with contextlib.suppress(openai.APIError):  # an event in the stream, unless all was sent before
        list(pieces)
    deadline, codes = time.monotonic() + 90, set()
    while True:
        try:
            client.completions.create(model=NAME, prompt="Node 1 ", max_tokens=4)
            break
        except openai.APITimeoutError:
            codes.add("timeout")
        except openai.InternalServerError as error:
            codes.add(str(error.code))
        assert time.monotonic() < deadline, codes
        time.sleep(0.2)
    assert codes <= {"version_failed", "starting", "engine_failed"}
    assert before.pid not in {process.pid for process in engines(stack)}


def test_traffic_of_another_kind_is_drift(stack: Stack, served: dict[str, Any]) -> None:
    """The profile that training wrote, the watcher beside the versions, and what the operator makes of its alarm."""
    watched = {"capture": {"content": "examples"}, "drift": {"windowRequests": 50}}
    stack.apply(deployment({"trainJob": {"name": "first"}}, **watched))
    wanted = "50 make the first window"
    status = stack.wait(NAME, lambda s: wanted in condition(s, "Drifted")[2], 120, "deployments")
    assert condition(status, "Available")[0] == "True"
    for number in range(60):
        code, _, _ = ask(served["url"], prompt=f"#define F_{number}(x) (*x)->y[{number}] && !z;", max_tokens=1)
        assert code == 200
    status = stack.wait(NAME, lambda s: condition(s, "Drifted")[0] == "True", 60, "deployments")
    assert condition(status, "Drifted")[1] == "DriftFound"
    drift = status["drift"]
    assert (drift["windows"], drift["version"], drift["dropped"]) == (1, served["version"], 0)
    snapshot = Path(drift["snapshot"]["uri"])
    assert list((snapshot / "train").glob("*.parquet"))
    assert list((snapshot / "held-out").glob("*.parquet"))
    page = Path(stack.run("slipway", "report", f"sdeploy/{NAME}", "--no-open").strip())
    assert "<svg" in page.read_text()
    assert "DriftFound" in stack.kubectl("describe", "deployments.slipway.dev", NAME)
    stack.apply(deployment({"trainJob": {"name": "first"}}))
    stack.wait(NAME, lambda s: not condition(s, "Drifted")[0], 30, "deployments")


class Traffic:
    """Requests, one after the other, for as long as it is entered; what they were answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.versions: list[str] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(40)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            try:
                self.versions.append(ask(self._url)[2])
            except OSError as error:
                self.failures.append(repr(error))


def test_a_new_model_takes_over_under_traffic_and_nothing_fails(stack: Stack, served: dict[str, Any]) -> None:
    old = served["version"]
    with Traffic(served["url"]) as traffic:
        stack.apply(deployment({"trainJob": {"name": "second"}}))
        status = stack.wait(NAME, lambda s: s.get("version") != old, 150, "deployments")
        time.sleep(1)
    new = status["version"]
    assert traffic.failures == []
    assert set(traffic.versions) == {old, new}
    assert traffic.versions[-1] == new
    assert status["stable"]["digest"] == stack.status("second")["model"]["digest"]
    described = stack.kubectl("describe", "deployments.slipway.dev", NAME)
    assert "Promoted" in described


def compression(corpus: Path) -> dict[str, Any]:
    """8-bit weights and activations, measured on a few held-out tokens."""
    held_out = {"sources": [{"uri": corpus.as_uri(), "include": ["part-7.txt"]}], "sequenceLength": 32}
    resources = {"cpu": "500m", "memory": "512Mi"}
    return {"int8Dynamic": {}, "heldOut": held_out | {"maxTokens": 256}, "resources": resources}


def test_a_compressed_version_takes_over_and_its_weights_are_made_once(
    stack: Stack, served: dict[str, Any], corpus: Path
) -> None:
    dense = stack.status(NAME, "deployments")["version"]
    model, asked = {"trainJob": {"name": "second"}}, compression(corpus)
    stack.apply(deployment(model, compression=asked))
    with Traffic(served["url"]) as traffic:
        stack.wait(NAME, lambda s: s.get("state") == "Compressing", 30, "deployments")
        status = stack.wait(NAME, lambda s: s.get("version") != dense, 200, "deployments")
        time.sleep(1)
    assert traffic.failures == []
    assert set(traffic.versions) == {dense, status["version"]}
    result = status["stable"]["compression"]
    assert (result["scheme"], result["cached"]) == ("int8Dynamic", False)
    assert result["execution"] == int8_linear.NAME
    assert result["baseDigest"] == stack.status("second")["model"]["digest"]
    for figure in ("sizeBytes", "memoryBytes"):
        assert result["after"][figure] < result["before"][figure]
    for measure in ("before", "after"):
        assert float(result[measure]["perplexity"]) > 1
        assert float(result[measure]["tokensPerSecond"]) > 0
    assert condition(status, "Compressed")[:2] == ("True", "ModelCompressed")
    client = openai.OpenAI(base_url=f"{served['url']}/v1", api_key="none", max_retries=0, timeout=60)
    assert "int8Dynamic" in client.models.list().model_dump_json()
    assert "ModelCompressed" in stack.kubectl("describe", "deployments.slipway.dev", NAME)
    assert "stage: Measuring" in stack.run("slipway", "logs", f"sdeploy/{NAME}")

    # Held otherwise it is another version, of the same weights.
    def held(rows: int) -> dict[str, Any]:
        engine = {"transformers": {"precision": "fp32", "maxBatch": rows, "maxContextTokens": 128}}
        before = stack.status(NAME, "deployments")["compression"]["version"]
        stack.apply(deployment(model, compression=asked, engine=engine, canary={"paused": True}))

        def found(now: dict[str, Any]) -> bool:
            return now["compression"]["version"] != before and "result" in now["compression"]

        made: dict[str, Any] = stack.wait(NAME, found, 120, "deployments")["compression"]["result"]
        return made

    again = held(2)
    assert (again["cached"], again["digest"]) == (True, result["digest"])

    # Damaged in storage they are made again, the same; who serves them has them in memory and goes on.
    weights = Path(result["uri"].removeprefix("file://")) / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.with_suffix(".damaged").write_bytes(flipped)
    weights.with_suffix(".damaged").replace(weights)
    with Traffic(served["url"]) as traffic:
        repaired = held(3)
    assert (repaired["cached"], repaired["digest"], repaired["uri"]) == (False, result["digest"], result["uri"])
    assert traffic.failures == []
    assert set(traffic.versions) == {status["version"]}
    stack.apply(deployment(model, compression=asked))


def damaged(model: Path, target: Path, prompt: str) -> Path:
    """A copy that loads, answers its warm-up, and fails at the tokens of this prompt: their embeddings are NaN."""
    shutil.copytree(model, target)
    tokens = Tokenizer.from_file(str(target / "tokenizer.json")).encode(prompt).ids
    weights = load_file(target / "model.safetensors")
    embeddings = weights["model.embed_tokens.weight"]
    weights.setdefault("lm_head.weight", embeddings.clone())
    embeddings[tokens] = float("nan")
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return target


def test_a_candidate_that_answers_errors_is_taken_back_and_no_client_sees_one(
    stack: Stack, served: dict[str, Any], tmp_path: Path
) -> None:
    before = stack.status(NAME, "deployments")["version"]
    model = damaged(Path(stack.status("second")["model"]["uri"]), tmp_path / "damaged", "Node 1 ")
    canary = {"steps": [{"weight": 50, "pauseSeconds": 120}], "progressDeadlineSeconds": 120}
    stack.apply(deployment({"uri": str(model)}, canary=canary))
    with Traffic(served["url"]) as traffic:
        status = stack.wait(NAME, lambda s: s.get("rejected"), 150, "deployments")
    assert status["version"] == before
    assert status["rejected"][0]["reason"] == "ErrorRateTooHigh"
    assert condition(status, "Degraded")[1] == "RolledBack"
    assert traffic.failures == []  # it fails before its first token, and the stable version answers
    assert set(traffic.versions) == {before}


def too_large(model: Path, target: Path) -> Path:
    """A copy whose configuration has it made with more memory than any process can address: 256 TiB a matrix."""
    shutil.copytree(model, target)
    weights = load_file(target / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".mlp." not in name}
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    wide = 2**48 // (4 * config["hidden_size"])
    (target / "config.json").write_text(json.dumps(config | {"intermediate_size": wide}))
    return target


def test_a_candidate_that_does_not_fit_into_memory_is_taken_back(
    stack: Stack, served: dict[str, Any], tmp_path: Path
) -> None:
    before = stack.status(NAME, "deployments")["version"]
    model = too_large(Path(stack.status("second")["model"]["uri"]), tmp_path / "large")
    stack.apply(deployment({"uri": str(model)}))
    with Traffic(served["url"]) as traffic:
        status = stack.wait(NAME, lambda s: len(s.get("rejected") or ()) == 2, 150, "deployments")
    assert status["version"] == before
    assert status["rejected"][0]["reason"] == "CandidateFailed", status["rejected"]
    assert "does not fit the host's memory" in status["rejected"][0]["message"], status["rejected"]
    assert condition(status, "Degraded")[1] == "RolledBack"
    assert traffic.failures == []
    assert set(traffic.versions) == {before}
    assert ask(served["url"])[0] == 200


def test_the_last_replica_goes_and_comes_back_for_a_request(stack: Stack, served: dict[str, Any]) -> None:
    """Cold starts are timed by the router: only a replica that was started while a request waited counts as one."""
    replicas = deployment({})["spec"]["replicas"] | {"min": 0, "idleSeconds": 2, "startTimeoutSeconds": 100}
    stack.apply(deployment({"trainJob": {"name": "second"}}, replicas=replicas))

    def cold(status: dict[str, Any]) -> bool:
        return "coldStartSeconds" in status["stable"]

    status: dict[str, Any] = {"stable": {}}
    for turn in range(5):
        time.sleep(15 + 5 * turn)  # idleSeconds, and the 10 s that Serve looks back
        assert ask(served["url"], timeout=110)[0] == 200
        until = time.monotonic() + 12  # the router reports every 5 s
        while not cold(status) and time.monotonic() < until:
            time.sleep(0.5)
            status = stack.status(NAME, "deployments")
        if cold(status):
            break
    assert cold(status), status
    seconds = float(status["stable"]["coldStartSeconds"])
    print(f"cold start of a small replica: {seconds} s")
    assert 0 < seconds < 100
    available = condition(status, "Available")
    assert available[0] == "True", f"at zero it answers, later: {available}"
    assert "Cold start" in stack.run("slipway", "describe", f"sdeploy/{NAME}")
