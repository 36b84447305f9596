"""The main job on a real API server: kubectl apply, the operator with the chart's account and rights, a real training
run, kubectl wait. slipway_local's Ray runner stands in for KubeRay and nodes: there are none here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from slipway_local.kubernetes.certificates import Authority
from slipway_local.ray_runner.head import HeadOptions, RayHead

from .conftest import CHART, NAMESPACE, RELEASE, ROOT, Cluster
from .installed import ACCOUNT, operator, requests_of

pytestmark = [pytest.mark.kube, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]


@contextlib.contextmanager
def ray_runner(cluster: Cluster, state: Path) -> Iterator[None]:
    """Runs what RayJobs ask for on this machine."""
    state.mkdir()
    kubeconfig = str(cluster.control_plane.kubeconfig)
    command = [*(sys.executable, "-P", "-m", "slipway_local.ray_runner", "--kubeconfig", kubeconfig)]
    with (state / "runner.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--state-dir", str(state), "--cpus", "2"], cwd=state, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
        head = RayHead(state, HeadOptions(cpus=1))
        asyncio.run(head.stop())
        shutil.rmtree(head.temp_dir.parent, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


STEPS = 15


def shortened() -> str:
    """The example with some of its steps, on a few packages: what it reaches is the demo's to show, and here it is
    about rights, certificates and a real API server."""
    example = yaml.safe_load((ROOT / "examples/trainjob.yaml").read_text())
    example["spec"]["data"]["sources"][0]["include"] = ["asyncio/**", "email/**", "http/**"]
    example["spec"]["data"]["evalSources"][0]["include"] = ["heapq.py"]
    example["spec"]["training"] |= {"steps": STEPS, "evalEverySteps": STEPS}
    return json.dumps(example)


def test_the_example_becomes_a_model(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    pair = Authority(tmp_path / "pki", "ca").server("reports")
    cluster.done(
        *("create", "secret", "generic", "reports-tls", "-n", NAMESPACE, "--type=kubernetes.io/tls"),
        *(f"--from-file=tls.crt={pair.certificate}", f"--from-file=tls.key={pair.key}"),
        f"--from-file=ca.crt={tmp_path / 'pki' / 'ca.crt'}",
    )
    values = {
        "storage": {"uri": f"file://{tmp_path}/storage"},
        "watch": {"namespaces": ["default"]},
        "reports": {"tls": {"source": "Secret", "secretName": "reports-tls"}},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    cluster.helm("install", RELEASE, CHART, "--values", tmp_path / "values.yaml")
    port = _free_port()
    with (
        operator(cluster, tmp_path / "operator", tls_secret="reports-tls", reports=f"127.0.0.1:{port}"),
        ray_runner(cluster, tmp_path / "ray"),
    ):
        cluster.done("apply", "--dry-run=server", "-f", ROOT / "examples/trainjob.yaml")
        (tmp_path / "job.json").write_text(shortened())
        cluster.done("apply", "-f", tmp_path / "job.json")
        waited = ("--for=condition=Succeeded", "tj/stdlib-lm", "--timeout=100s")
        for _ in range(4):  # kubectl's own deadline is shorter than that of `done`
            if cluster.kubectl("wait", *waited).returncode == 0:
                break
        job = cluster.get("trainjob", "stdlib-lm", "default")
        assert job["status"].get("model"), json.dumps(job["status"], indent=1)
        model = job["status"]["model"]
        assert Path(model["uri"].removeprefix("file://"), "model.safetensors").exists()
        assert float(model["perplexity"]) < 0.5 * float(model["initialPerplexity"])
        assert [attempt["outcome"] for attempt in job["status"]["attempts"]] == ["Succeeded"]
        assert f"{STEPS}/{STEPS}" in cluster.done("get", "tj", "-n", "default")
        described = cluster.done("describe", "tj", "stdlib-lm", "-n", "default")
        assert "ModelSaved" in described and "attempt 1: saved" in described.partition("Events:")[2]
        _, refused = requests_of(cluster, ACCOUNT)
        assert not refused, "the chart grants what the main job needs"
