"""TrainJobs through the whole control plane, with the training mimicked: what the operator itself can carry.

    python benchmarks/control_plane.py [--server local|kube] [--jobs 500] [--arrivals 500] [--floor 300] [--kuberay 0]

The API server (slipway_local, or a real etcd, kube-apiserver and controller manager) and the operator run as processes
of their own. An actor in this process plays KubeRay and the runs: it marks each RayJob running, sends the run's
report and its end with the run's token, and marks the RayJob complete. Every TrainJob must end Succeeded.

Three phases: all `--jobs` at once; `--arrivals` more at 50 per second, for the time from a TrainJob's creation to the
sight of its RayJob; then nothing, for what the operator asks when nothing happens. Then, without the operator, the same
writes by a client that does nothing else (`--floor` jobs): what this server makes of them is the most to be had here.

`--kuberay N` (with `--server kube`) measures KubeRay's operator alone on the same machine first: N RayJobs are created
directly, the pods that it makes are marked ready, and each RayJob must reach jobDeploymentStatus Running; once with its
defaults and once with concurrency and rate limits raised. It does more for each (a RayCluster, a service, a Secret, two
pods), so the two rates stand side by side as what a cluster's control plane would carry of each, not as a race.

A figure of the same shape: Kueue's envtest baseline admits 15,000 workloads at 43/s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from control_plane_floor import floor
from control_plane_servers import METRICS, REPORTS, RUN_KEY, Processes, kube_server, kuberay, local_server, operator
from slipway_api import conditions as c
from slipway_api.run import RUN_ENV, report_token
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import PODS, RAYJOBS, TRAINJOBS, Resource
from slipway_operator.kube.store import Change, Store, keep

MODEL = {"uri": "file:///m", "digest": "sha256:0", "parameters": 1}
ARRIVALS_PER_SECOND = 50
IDLE_SECONDS = 20
READY = [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]


def manifest(name: str) -> dict[str, Any]:
    return {
        "apiVersion": TRAINJOBS.api_version,
        "kind": TRAINJOBS.kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
            "tokenizer": {"train": {}},
            "data": {"sources": [{"uri": "python://stdlib"}]},
            "training": {"steps": 10},
        },
    }


def bare_ray_job(name: str) -> dict[str, Any]:
    """A RayJob as somebody without Slipway would write it: one head, one worker."""
    pod = {"spec": {"containers": [{"name": "ray", "image": "rayproject/ray:2.60.0"}]}}
    worker = {"groupName": "workers", "replicas": 1, "minReplicas": 1, "maxReplicas": 1}
    return {
        "apiVersion": RAYJOBS.api_version,
        "kind": RAYJOBS.kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "entrypoint": "python -c pass",
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": {
                "headGroupSpec": {"rayStartParams": {}, "template": pod},
                "workerGroupSpecs": [{**worker, "rayStartParams": {}, "template": pod}],
            },
        },
    }


class Actor:
    """Plays KubeRay and the run inside each RayJob."""

    def __init__(self, client: Client, http: aiohttp.ClientSession) -> None:
        self._client = client
        self._http = http
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[Any] | Any = asyncio.current_task()
        self.seen: dict[str, float] = {}
        """When the first RayJob of each TrainJob was seen."""

    def handle(self, change: Change, live: bool) -> None:
        """Start a run for a new RayJob."""
        if change.type == "ADDED":
            owner = change.obj["metadata"]["ownerReferences"][0]["name"]
            self.seen.setdefault(owner, time.monotonic())
            task = asyncio.create_task(self._play(change.obj))
            self._tasks.add(task)
            task.add_done_callback(self._played)

    def _played(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"a run was not played to its end: {type(error).__name__}: {error}", file=sys.stderr)
            self._main.cancel()  # its TrainJob would be waited for in vain

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
        await patch_status(self._client, RAYJOBS, ray_job, status)

    async def _report(self, run: dict[str, Any], sequence: int, body: dict[str, Any]) -> None:
        url = f"http://{REPORTS}/v1/runs/{run['kind']}/{run['namespace']}/{run['name']}/{run['uid']}/{run['attempt']}"
        token = report_token(RUN_KEY, run["uid"], run["attempt"])
        message = {"sequence": sequence, "time": "2026-01-01T00:00:00Z", **body}
        while True:
            async with self._http.post(url, json=message, headers={"Authorization": f"Bearer {token}"}) as answer:
                if answer.status != 503:
                    answer.raise_for_status()
                    return
            await asyncio.sleep(0.2)


async def patch_status(client: Client, resource: Resource, obj: dict[str, Any], status: dict[str, Any]) -> None:
    metadata = obj["metadata"]
    await client.merge_patch(
        resource, metadata["namespace"], metadata["name"], {"status": status}, subresource="status"
    )


@dataclass
class Ended:
    """Counts objects that have got where they should, and knows when."""

    met: Callable[[dict[str, Any]], bool]
    names: set[str] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def handle(self, change: Change, live: bool) -> None:
        if change.type != "DELETED" and self.met(change.obj):
            self.names.add(change.obj["metadata"]["name"])
            self._changed.set()

    async def reached(self, count: int, limit: float) -> None:
        async with asyncio.timeout(limit):
            while len(self.names) < count:
                self._changed.clear()
                await self._changed.wait()


def succeeded(job: dict[str, Any]) -> bool:
    conditions = (job.get("status") or {}).get("conditions", [])
    if c.is_true(conditions, c.FAILED):
        sys.exit(f"{job['metadata']['name']} failed: {conditions}")
    return c.is_true(conditions, c.SUCCEEDED)


@contextlib.asynccontextmanager
async def watching(*reflectors: Reflector) -> AsyncIterator[None]:
    """The caches of this process, filled and kept up to date."""
    tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors]
    try:
        for reflector in reflectors:
            await reflector.synced.wait()
        yield
    finally:
        for task in tasks:
            task.cancel()


@dataclass
class Figures:
    """What one run of the operator was measured to do."""

    created: float
    total: float
    memory: float
    cpu: tuple[float, float]  # seconds of operator and server
    metrics: str
    latencies: list[float]
    idle: float


async def drive(kubeconfig: Path, process: Processes, server: Processes, jobs: int, arrivals: int) -> Figures:
    """All three phases; memory and CPU are those at the end of the first, metrics of all: Events are written later."""
    config = await load_config(str(kubeconfig), None)
    async with Client(config, request_timeout=120) as client, sessions() as http:
        await wait_ready(http)
        ended, actor = Ended(succeeded), Actor(client, http)
        # What this process caches of a TrainJob is what it looks at: its memory is not the operator's.
        train_jobs = Reflector(client, Store(TRAINJOBS, project=keep("status.conditions")))
        ray_jobs = Reflector(client, Store(RAYJOBS))
        train_jobs.add_handler(ended.handle)
        ray_jobs.add_handler(actor.handle)
        async with watching(train_jobs, ray_jobs):
            cpu = process.cpu_seconds(), server.cpu_seconds()
            started = time.monotonic()
            await create_all(client, TRAINJOBS, [manifest(f"job-{number:05}") for number in range(jobs)])
            created = time.monotonic() - started
            await ended.reached(jobs, 3600)
            total = time.monotonic() - started
            cpu = process.cpu_seconds() - cpu[0], server.cpu_seconds() - cpu[1]
            memory = process.resident_mib()
            born: dict[str, float] = {}
            for number in range(arrivals):
                await asyncio.sleep(max(0.0, number / ARRIVALS_PER_SECOND - (time.monotonic() - started - total)))
                name = f"late-{number:05}"
                born[name] = time.monotonic()
                await client.create(TRAINJOBS, manifest(name))
            await ended.reached(jobs + arrivals, 3600)
            latencies = sorted(actor.seen[name] - at for name, at in born.items())
            await asyncio.sleep(10)
            before = requests(await scrape(http))
            await asyncio.sleep(IDLE_SECONDS)
            metrics = await scrape(http)
            idle = (requests(metrics) - before) / IDLE_SECONDS
        return Figures(created, total, memory, cpu, metrics, latencies, idle)


def sessions() -> aiohttp.ClientSession:
    """Each run has a connection of its own, which is held until its end is written down: ten thousand may wait."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def create_all(client: Client, resource: Resource, objects: list[dict[str, Any]]) -> None:
    gate = asyncio.Semaphore(16)

    async def create(obj: dict[str, Any]) -> None:
        async with gate:
            await client.create(resource, obj)

    await asyncio.gather(*(create(obj) for obj in objects))


async def drive_kuberay(kubeconfig: Path, count: int, prefix: str) -> float:
    """Seconds until that many bare RayJobs run; the pods that KubeRay makes become ready at once."""
    config = await load_config(str(kubeconfig), None)
    async with Client(config, request_timeout=120) as client:
        tasks: set[asyncio.Task[None]] = set()

        async def ready(pod: dict[str, Any]) -> None:
            address = "10.1.2.3"
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": READY}
            with contextlib.suppress(NotFound):
                await patch_status(client, PODS, pod, status)

        def on_pod(change: Change, live: bool) -> None:
            if change.type == "ADDED":
                task = asyncio.create_task(ready(change.obj))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        def runs(ray_job: dict[str, Any]) -> bool:
            running = (ray_job.get("status") or {}).get("jobDeploymentStatus") == "Running"
            return running and str(ray_job["metadata"]["name"]).startswith(prefix)

        ended = Ended(runs)
        ray_jobs, pods = Reflector(client, Store(RAYJOBS, project=keep("status"))), Reflector(client, Store(PODS))
        ray_jobs.add_handler(ended.handle)
        pods.add_handler(on_pod)
        async with watching(ray_jobs, pods):
            started = time.monotonic()
            await create_all(client, RAYJOBS, [bare_ray_job(f"{prefix}-{number:05}") for number in range(count)])
            await ended.reached(count, 3600)
            took = time.monotonic() - started
            for number in range(count):
                with contextlib.suppress(NotFound):
                    await client.delete(RAYJOBS, "default", f"{prefix}-{number:05}")
            for _ in range(3000):  # until its finalizer has let them go: the next phase starts from nothing
                if not len(ray_jobs.store) and not len(pods.store):
                    break
                await asyncio.sleep(0.2)
            return took


async def wait_ready(http: aiohttp.ClientSession) -> None:
    """Until the operator's caches are warm."""
    for _ in range(300):
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"http://{METRICS}/readyz") as answer:
                if answer.status == 200:
                    return
        await asyncio.sleep(0.1)
    sys.exit("the operator did not become ready in 30 s")


async def scrape(http: aiohttp.ClientSession) -> str:
    async with http.get(f"http://{METRICS}/metrics") as answer:
        return await answer.text()


def metric(text: str, name: str, **labels: str) -> float:
    """Sum of a metric's samples that carry these labels."""
    wanted = [f'{k}="{v}"' for k, v in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(w in line for w in wanted))


def requests(text: str) -> float:
    """The operator's requests so far, but for those that open a watch."""
    name = "slipway_requests_total"
    return metric(text, name) - metric(text, name, verb="watch")


def report(jobs: int, server: str, figures: Figures) -> None:
    """The table."""
    cpu, every = figures.cpu, jobs + len(figures.latencies)
    writes = {
        verb: metric(figures.metrics, "slipway_requests_total", verb=verb) / every
        for verb in ("apply", "create", "delete", "patch")
    }
    reconciles = metric(figures.metrics, "slipway_reconcile_total") / every
    told = metric(figures.metrics, "slipway_events_total", result="created") / every
    kept_back = metric(figures.metrics, "slipway_events_total") / every - told
    spread = ", ".join(f"{verb} {count:.1f}" for verb, count in writes.items())
    print(f"{jobs} TrainJobs on {server}; {os.cpu_count()} CPUs shared by operator, API server and the actor")
    print(f"created                         {jobs / figures.created:8.0f} /s")
    print(f"created to Succeeded            {jobs / figures.total:8.1f} /s ({figures.total:.1f} s in all)")
    print(f"operator, resident              {figures.memory:8.0f} MiB")
    print(
        f"CPU per job                     {1000 * cpu[0] / jobs:8.1f} ms operator, {1000 * cpu[1] / jobs:.1f} ms server"
    )
    print(f"writes per job                  {sum(writes.values()):8.1f} ({spread}; one is the RayJob itself)")
    print(f"Events per job                  {told:8.1f} (among the writes), {kept_back:.1f} dropped or counted up")
    print(f"reconciles per job              {reconciles:8.1f}")
    if figures.latencies:
        p50 = statistics.median(figures.latencies)
        p99 = figures.latencies[int(len(figures.latencies) * 0.99)]
        arriving = f"{len(figures.latencies)} at {ARRIVALS_PER_SECOND}/s"
        print(f"TrainJob created to RayJob seen {1000 * p99:8.0f} ms p99, {1000 * p50:.0f} ms median ({arriving})")
    print(f"requests when idle              {figures.idle:8.2f} /s, watches apart")


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["local", "kube"], default="local")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--arrivals", type=int, default=500)
    parser.add_argument("--floor", type=int, default=300, metavar="N")
    parser.add_argument("--kuberay", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    if arguments.kuberay and arguments.server != "kube":
        parser.error("--kuberay needs --server kube: KubeRay's operator needs a real API server")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended as well
    start = kube_server if arguments.server == "kube" else local_server
    with tempfile.TemporaryDirectory(prefix="slipway-") as folder, start(Path(folder)) as (kubeconfig, server):
        home = Path(folder)
        raised = ("--reconcile-concurrency=10", "--qps=1000", "--burst=2000")
        for name, flags in (("defaults", ()), ("raised", raised)) if arguments.kuberay else ():
            with kuberay(home, kubeconfig, *flags):
                took = asyncio.run(drive_kuberay(kubeconfig, arguments.kuberay, name))
            print(f"KubeRay alone, {name:<10} {arguments.kuberay / took:8.1f} RayJobs/s created to Running", flush=True)
        with operator(home, kubeconfig) as process:
            figures = asyncio.run(drive(kubeconfig, process, server, arguments.jobs, arguments.arrivals))
        report(arguments.jobs, arguments.server, figures)
        if arguments.floor:
            most = asyncio.run(floor(kubeconfig, "job-00000", arguments.floor))
            ours = arguments.jobs / figures.total
            print(f"the same writes, and no operator{most:8.1f} /s: ours is {100 * ours / most:.0f}% of it")


if __name__ == "__main__":
    main()
