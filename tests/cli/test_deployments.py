"""Deployments on the command line: describe, and wait with what it waits for."""

from __future__ import annotations

import threading
import time
from typing import Any

from slipway_operator.kube.resource import DEPLOYMENTS

from .conftest import World

MANIFEST = """\
apiVersion: slipway.dev/v1alpha1
kind: Deployment
metadata:
  name: {name}
spec:
  model: {{uri: "s3://models/m"}}
  requires: [{{evalJob: {{name: held-out}}}}]
  replicas: {{min: 0, max: 2}}
  canary: {{steps: [{{weight: 10}}, {{weight: 50, minRequests: 100}}]}}
"""
TIME = "2026-01-01T00:00:00Z"
ENGINE = {"precision": "bf16", "maxBatch": 16, "maxContextTokens": 2048, "maxQueue": 64}


def condition(type_: str, status: str, reason: str, message: str) -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": message} | {
        "lastTransitionTime": TIME,
        "observedGeneration": 1,
    }


def apply(world: World, name: str, **status: Any) -> None:
    result = world.slipway("apply", "-f", "-", stdin=MANIFEST.format(name=name))
    assert result.code == 0, result.err
    set_status(world, name, **status)


def set_status(world: World, name: str, **status: Any) -> None:
    patch = {"status": status}
    world.api(lambda client: client.merge_patch(DEPLOYMENTS, "default", name, patch, subresource="status"))


def version(name: str, weight: int, **fields: Any) -> dict[str, Any]:
    reference = {"uri": f"s3://models/{name}"}
    return {"version": name, "weight": weight, "reference": reference, "engine": ENGINE, "state": "RUNNING"} | fields


MEASURE = {"sizeBytes": 100, "memoryBytes": 100, "perplexity": "9.0", "tokensPerSecond": "50"}
COMPRESSED = {
    "scheme": "nf4",
    "uri": "s3://c",
    "digest": "sha256:c",
    "baseDigest": "sha256:b",
    "schemeDigest": "sha256:s",
    "execution": "bitsandbytes kernel",
    "before": MEASURE,
    "after": MEASURE,
    "qualityLoss": "0.012",
    "speedUp": "1.8",
}
ALARM = {
    "id": "a",
    "kind": "data",
    "signal": "prompt-length",
    "test": "ks",
    "statistic": "0.4",
    "effect": "0.31",
    "threshold": "0.1",
    "window": 3,
    "start": TIME,
    "end": TIME,
}
RUN = {"id": "chat-r1", "cause": "drift", "signal": "prompt-length", "stage": "Training", "started": TIME}


def test_describe_tells_versions_rollout_rejections_drift_and_compression(world: World) -> None:
    apply(
        world,
        "told",
        state="Progressing",
        url="http://chat:8000",
        rayServiceName="told",
        conditions=[condition("Available", "True", "Serving", "version v-old answers at http://chat:8000")],
        stable=version(
            "v-old", 50, requests=1200, errors=3, latencyP99Ms="210", coldStartSeconds="7.3", compression=COMPRESSED
        ),
        candidate=version("v-new", 50, step=1, stepSince=TIME, requests=90, stepRequests=50),
        rejected=[{"version": "v-bad", "reason": "ErrorRateTooHigh", "message": "20 of 50 failed", "time": TIME}],
        drift={"windows": 4, "requests": 2000, "active": ["prompt-length"], "alarms": [ALARM]},
        retrain={"current": RUN},
    )
    out = world.slipway("describe", "sdeploy/told").out
    lines = {line.split()[0]: line for line in reversed(out.split("\n")) if line.split()}  # the first of each wins
    assert lines["v-old"].split()[1:4] == ["stable", "50%", "RUNNING"]
    assert "1,200" in out
    assert "210 ms" in lines["v-old"]
    assert lines["URL:"].endswith("http://chat:8000")
    assert "7.3 s, when a request last came while no replica ran" in out
    assert lines["Step:"].split()[1:4] == ["2", "of", "2,"]
    assert "40 of 100 in this step" in out
    assert lines["v-bad"].endswith("20 of 50 failed")
    assert "nf4" in out
    assert "1.8x" in out
    assert lines["Drifted"].endswith("prompt-length")
    assert "effect 0.31 over 0.1" in out
    assert "tj/chat-r1, for prompt-length: Training" in out
    assert "ej/held-out" in lines["Requires:"]
    assert lines["Idle:"].endswith("300 s without a request")


def test_describe_says_nothing_of_what_is_not_there(world: World) -> None:
    apply(world, "bare", state="Pending")
    out = world.slipway("describe", "sdeploy/bare").out
    for title in ("Rollout", "Taken back", "Compression", "Drift", "Retraining", "Versions"):
        assert f"{title}:" not in out


def test_wait_tells_what_it_waits_for(world: World) -> None:
    why = "pod chat-head: image slipway/serving:1: ErrImagePull: manifest unknown"
    apply(world, "slow", state="ImagePullFailed", conditions=[condition("Available", "False", "ImagePullFailed", why)])

    def mend() -> None:
        time.sleep(1.5)
        set_status(world, "slow", state="Available", conditions=[condition("Available", "True", "Serving", "answers")])

    thread = threading.Thread(target=mend)
    thread.start()
    result = world.slipway("wait", "sdeploy/slow", "--for=condition=Available", "--timeout=30s")
    thread.join(10)
    assert result.code == 0, result.err
    assert f"slow: ImagePullFailed: {why}" in result.out
    assert result.out.rstrip().endswith("/slow condition met")
