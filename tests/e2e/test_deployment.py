"""From a trained model to an endpoint, and from one version to the next without anybody noticing."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

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


def ask(url: str, **changes: Any) -> tuple[int, dict[str, Any], str]:
    """(status, body, version) of a completion."""
    body = {"prompt": "Node 1 ", "max_tokens": 4, "temperature": 0} | changes
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, json.load(answer), answer.headers["x-slipway-version"]


def test_the_official_client(stack: Stack, served: dict[str, Any]) -> None:
    client = openai.OpenAI(base_url=f"{served['url']}/v1", api_key="none", max_retries=0, timeout=60)
    assert [model.id for model in client.models.list()] == [NAME]
    whole = client.completions.create(model=NAME, prompt="Node 1 ", max_tokens=8, temperature=0)
    pieces = client.completions.create(model=NAME, prompt="Node 1 ", max_tokens=8, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
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


def test_a_candidate_that_cannot_load_is_taken_back(stack: Stack, served: dict[str, Any], tmp_path: Path) -> None:
    before = stack.status(NAME, "deployments")["version"]
    (tmp_path / "config.json").write_text("{}")
    stack.apply(deployment({"uri": str(tmp_path)}))
    with Traffic(served["url"]) as traffic:
        status = stack.wait(NAME, lambda s: s.get("rejected"), 150, "deployments")
    assert status["version"] == before
    assert status["rejected"][0]["reason"] == "CandidateFailed"
    assert condition(status, "Degraded")[1] == "RolledBack"
    assert traffic.failures == []
    assert set(traffic.versions) == {before}
    assert ask(served["url"])[0] == 200
