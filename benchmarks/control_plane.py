"""TrainJobs through the whole control plane, with the training mimicked: what the operator itself can carry.

    python benchmarks/control_plane.py [--jobs 500]

The local API server and the operator run as processes of their own. An actor plays KubeRay and the runs: it marks each
RayJob running, sends the run's report and its end with the run's token, and marks the RayJob complete. Every TrainJob
must end Succeeded. A figure of the same shape: Kueue's envtest baseline admits 15,000 workloads at 43/s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from slipway_api import conditions as c
from slipway_api.run import RUN_ENV, report_token
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import RAYJOBS, TRAINJOBS, Key
from slipway_operator.kube.store import Change, Store

REPORTS, METRICS = "127.0.0.1:18097", "127.0.0.1:18096"
RUN_KEY = b"0123456789abcdef0123456789abcdef"
MODEL = {"uri": "file:///m", "digest": "sha256:0", "parameters": 1}


def manifest(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
            "tokenizer": {"train": {}},
            "data": {"sources": [{"uri": "python://stdlib"}]},
            "training": {"steps": 10},
        },
    }


@contextlib.contextmanager
def control_plane(home: Path) -> Iterator[tuple[Path, psutil.Process, psutil.Process]]:
    """(kubeconfig, operator, API server), stopped at the end."""
    (home / "key").write_bytes(RUN_KEY)
    config = {
        "storage": {"uri": f"file://{home}/storage"},
        "reports": {"listen": REPORTS, "url": f"http://{REPORTS}", "keyFile": str(home / "key")},
        "metrics": {"listen": METRICS},
        "leaderElection": {"enabled": False},
    }
    (home / "operator.yaml").write_text(yaml.safe_dump(config))
    kubeconfig = home / "apiserver" / "kubeconfig"
    server = subprocess.Popen(
        [sys.executable, "-m", "slipway_local.apiserver", "--state-dir", str(home / "apiserver")],
        stdout=subprocess.DEVNULL,
    )
    while not kubeconfig.exists():
        time.sleep(0.02)
    command = ["-m", "slipway_operator", "--config", str(home / "operator.yaml"), "--kubeconfig", str(kubeconfig)]
    operator = subprocess.Popen([sys.executable, *command, "--log-level", "ERROR"])
    try:
        yield kubeconfig, psutil.Process(operator.pid), psutil.Process(server.pid)
    finally:
        for process in (operator, server):
            process.terminate()
            process.wait(15)


class Actor:
    """Plays KubeRay and the run inside each RayJob."""

    def __init__(self, client: Client, http: aiohttp.ClientSession) -> None:
        self._client = client
        self._http = http
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, change: Change, live: bool) -> None:
        """Start a run for a new RayJob."""
        if change.type == "ADDED":
            task = asyncio.create_task(self._play(change.obj))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _play(self, ray_job: dict[str, Any]) -> None:
        await self._status(ray_job, jobStatus="RUNNING", jobDeploymentStatus="Running")
        head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        run = json.loads(next(e["value"] for e in head["env"] if e["name"] == RUN_ENV))
        progress = {"step": 5, "steps": 10, "loss": "2.5"}
        await self._report(run, 1, {"stage": "Training", "progress": progress})
        end = {"outcome": "Succeeded", "reason": "ModelSaved", "message": "mimicked", "model": MODEL}
        await self._report(run, 2, {"stage": "Ended", "progress": {**progress, "step": 10}, "end": end})
        await self._status(ray_job, jobStatus="SUCCEEDED", jobDeploymentStatus="Complete")

    async def _status(self, ray_job: dict[str, Any], **status: Any) -> None:
        metadata = ray_job["metadata"]
        await self._client.merge_patch(
            RAYJOBS, metadata["namespace"], metadata["name"], {"status": status}, subresource="status"
        )

    async def _report(self, run: dict[str, Any], sequence: int, body: dict[str, Any]) -> None:
        url = f"http://{REPORTS}/v1/runs/{run['namespace']}/{run['name']}/{run['uid']}/{run['attempt']}"
        token = report_token(RUN_KEY, run["uid"], run["attempt"])
        message = {"sequence": sequence, "time": "2026-01-01T00:00:00Z", **body}
        while True:
            async with self._http.post(url, json=message, headers={"Authorization": f"Bearer {token}"}) as answer:
                if answer.status != 503:
                    answer.raise_for_status()
                    return
            await asyncio.sleep(0.2)


async def drive(kubeconfig: Path, jobs: int) -> tuple[float, float, str]:
    """(seconds to create, seconds to the last success, the operator's metrics)."""
    config = await load_config(str(kubeconfig), None)
    async with Client(config) as client, aiohttp.ClientSession() as http:
        await wait_ready(http)
        done = asyncio.Event()
        finished: set[Key] = set()
        train_jobs, ray_jobs = Store(TRAINJOBS), Store(RAYJOBS)

        def on_train_job(change: Change, live: bool) -> None:
            conditions = (change.obj.get("status") or {}).get("conditions", [])
            if c.is_true(conditions, c.FAILED):
                sys.exit(f"{change.obj['metadata']['name']} failed: {conditions}")
            if c.is_true(conditions, c.SUCCEEDED):
                finished.add(Key(change.obj["metadata"]["namespace"], change.obj["metadata"]["name"]))
                if len(finished) == jobs:
                    done.set()

        reflectors = [Reflector(client, train_jobs), Reflector(client, ray_jobs)]
        reflectors[0].add_handler(on_train_job)
        reflectors[1].add_handler(Actor(client, http).handle)
        watching = [asyncio.create_task(r.run()) for r in reflectors]
        for reflector in reflectors:
            await reflector.synced.wait()
        started = time.monotonic()
        gate = asyncio.Semaphore(16)

        async def create(number: int) -> None:
            async with gate:
                body = {"apiVersion": TRAINJOBS.api_version, "kind": TRAINJOBS.kind, **manifest(f"job-{number:05}")}
                await client.create(TRAINJOBS, body)

        await asyncio.gather(*(create(i) for i in range(jobs)))
        created = time.monotonic() - started
        await asyncio.wait_for(done.wait(), 600)
        total = time.monotonic() - started
        for task in watching:
            task.cancel()
        async with http.get(f"http://{METRICS}/metrics") as answer:
            return created, total, await answer.text()


async def wait_ready(http: aiohttp.ClientSession) -> None:
    """Until the operator's caches are warm."""
    for _ in range(300):
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"http://{METRICS}/readyz") as answer:
                if answer.status == 200:
                    return
        await asyncio.sleep(0.1)
    sys.exit("the operator did not become ready in 30 s")


def metric(text: str, name: str, **labels: str) -> float:
    """Sum of a metric's samples that carry these labels."""
    wanted = [f'{k}="{v}"' for k, v in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(w in line for w in wanted))


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    jobs = parser.parse_args().jobs
    folder = tempfile.TemporaryDirectory(prefix="slipway-")
    with folder, control_plane(Path(folder.name)) as (kubeconfig, operator, server):
        created, total, metrics = asyncio.run(drive(kubeconfig, jobs))
        memory = operator.memory_info().rss / 2**20
        cpu = sum(operator.cpu_times()[:2]), sum(server.cpu_times()[:2])
    writes = sum(metric(metrics, "slipway_requests_total", verb=v) for v in ("apply", "create", "delete", "patch"))
    print(f"{jobs} TrainJobs, {os.cpu_count()} CPUs shared by operator, API server and the actor")
    print(f"created                         {jobs / created:8.0f} /s")
    print(f"created to Succeeded            {jobs / total:8.1f} /s ({total:.1f} s in all)")
    print(f"operator, resident              {memory:8.0f} MiB")
    print(
        f"CPU per job                     {1000 * cpu[0] / jobs:8.1f} ms operator, {1000 * cpu[1] / jobs:.1f} ms server"
    )
    print(f"writes per job                  {writes / jobs:8.1f} (children, status, events)")
    print(f"reconciles per job              {metric(metrics, 'slipway_reconcile_total') / jobs:8.1f}")


if __name__ == "__main__":
    main()
