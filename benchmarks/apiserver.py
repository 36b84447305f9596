"""What the local API server does on this machine: creates per second, watch latency, listing 10,000 TrainJobs by pages.

`python benchmarks/apiserver.py [--objects 10000] [--clients 32]` starts the server in a process of its own, speaks to
it over TLS with keep-alive connections, prints a table and fails (exit code 1) where a figure misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
import yaml

JOBS = "/apis/slipway.dev/v1alpha1/namespaces/default/trainjobs"
PAGE = 500


@dataclass(frozen=True)
class Row:
    """One line of the table; `bound` says on which side of the target a good figure lies."""

    name: str
    value: float
    unit: str
    target: float
    bound: str

    @property
    def good(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.target if self.bound == ">=" else self.value <= self.target


def train_job(name: str) -> bytes:
    """A TrainJob as a user writes it, about 1 KB, 3 KB when it is stored with its defaults and managedFields."""
    return orjson.dumps(
        {
            "apiVersion": "slipway.dev/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": name, "labels": {"team": "language", "app.kubernetes.io/name": "stdlib-lm"}},
            "spec": {
                "model": {"fresh": {"hiddenSize": 256, "layers": 4, "heads": 8, "maxPositionEmbeddings": 1024}},
                "tokenizer": {"train": {"vocabSize": 8192}},
                "data": {
                    "sources": [{"uri": "python://stdlib", "include": ["**/*.py"], "exclude": ["test/**"]}],
                    "evalSources": [{"uri": "python://stdlib", "include": ["json/*.py", "asyncio/*.py"]}],
                    "sequenceLength": 512,
                },
                "training": {
                    "steps": 200,
                    "globalBatchSize": 16,
                    "microBatchSize": 4,
                    "optimizer": {"learningRate": "1e-3"},
                    "schedule": {"warmupSteps": 20},
                    "evalEverySteps": 50,
                },
                "strategy": {"fsdp": {"shardDegree": 2}},
                "workers": {"count": 2, "resources": {"cpu": "1", "memory": "2Gi"}},
                "checkpoint": {"everySteps": 50},
            },
        }
    )


@asynccontextmanager
async def server(state_dir: Path) -> AsyncIterator[tuple[str, psutil.Process, float]]:
    """(URL, process, seconds until it answered)"""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "slipway_local.apiserver", "--state-dir", str(state_dir), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        yield url, psutil.Process(process.pid), time.perf_counter() - began
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def client(state_dir: Path, url: str, connections: int) -> AsyncIterator[aiohttp.ClientSession]:
    """A session with the credentials of the server's kubeconfig."""
    config: Any = yaml.safe_load((state_dir / "kubeconfig").read_text())
    context = ssl.create_default_context(cafile=str(state_dir / "tls.crt"))
    headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(ssl=context, limit=connections)
    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as session:
        yield session


async def create_many(session: aiohttp.ClientSession, prefix: str, count: int, clients: int) -> float:
    """Creates per second with that many concurrent clients."""
    names = iter(range(count))

    async def work() -> None:
        for number in names:
            async with session.post(JOBS, data=train_job(f"{prefix}-{number}")) as response:
                if response.status != 201:
                    raise RuntimeError(await response.text())
                await response.read()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return count / (time.perf_counter() - began)


async def watch_latency(session: aiohttp.ClientSession, count: int) -> list[float]:
    """Seconds from the sending of a create to the arrival of its event, one after another."""
    sent: dict[str, float] = {}
    took: list[float] = []
    ready = asyncio.Event()
    arrived = asyncio.Event()

    async def watch() -> None:
        async with session.get(JOBS, params={"watch": "1", "limit": "1"} | await _now(session)) as response:
            ready.set()
            async for line in response.content:
                event = orjson.loads(line)
                name = event["object"]["metadata"].get("name")
                if event["type"] == "ADDED" and name in sent:
                    took.append(time.perf_counter() - sent[name])
                    arrived.set()

    task = asyncio.create_task(watch())
    await asyncio.wait_for(ready.wait(), 10)
    for number in range(count):
        name = f"watched-{number}"
        body = train_job(name)
        arrived.clear()
        sent[name] = time.perf_counter()
        async with session.post(JOBS, data=body) as response:
            await response.read()
        await asyncio.wait_for(arrived.wait(), 10)
    task.cancel()
    return took


async def _now(session: aiohttp.ClientSession) -> dict[str, str]:
    async with session.get(JOBS, params={"limit": "1"}) as response:
        return {"resourceVersion": (await response.json())["metadata"]["resourceVersion"]}


async def list_pages(session: aiohttp.ClientSession) -> tuple[int, float]:
    """(objects, seconds) of reading and parsing every page."""
    count, token = 0, ""
    began = time.perf_counter()
    while True:
        async with session.get(JOBS, params={"limit": str(PAGE), "continue": token}) as response:
            page = orjson.loads(await response.read())
        count += len(page["items"])
        token = page["metadata"].get("continue", "")
        if not token:
            return count, time.perf_counter() - began


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time that a process has used: says what a figure costs even where others use the machine too."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def measure(objects: int, clients: int) -> list[Row]:
    """Every figure, from one run."""
    with tempfile.TemporaryDirectory() as folder:
        state_dir = Path(folder)
        async with server(state_dir) as (url, process, start), client(state_dir, url, clients + 1) as session:
            await create_many(session, "warm", 200, clients)
            before = cpu_seconds(process)
            rate = await create_many(session, "job", objects, clients)
            create_cpu = (cpu_seconds(process) - before) / objects
            latency = await watch_latency(session, 300)
            before = cpu_seconds(process)
            count, seconds = await list_pages(session)
            list_cpu = cpu_seconds(process) - before
            memory = process.memory_info().rss / 2**20
        async with server(state_dir) as (_, _, restart):
            pass
    return [
        Row("start, empty", start, "s", 2.5, "<="),
        Row(f"creates, {clients} clients", rate, "/s", 500, ">="),
        Row("server CPU per create", create_cpu * 1000, "ms", 2, "<="),
        Row("create to watch event, median", statistics.median(latency) * 1000, "ms", 10, "<="),
        Row("create to watch event, p99", statistics.quantiles(latency, n=100)[98] * 1000, "ms", 50, "<="),
        Row(f"list of {count} by pages of {PAGE}", seconds, "s", 2, "<="),
        Row("server CPU of that list", list_cpu, "s", 1, "<="),
        Row(f"memory with {count} objects", memory, "MiB", 400, "<="),
        Row(f"start with {count} objects", restart, "s", 2.5, "<="),
    ]


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    arguments = parser.parse_args()
    rows = asyncio.run(measure(arguments.objects, arguments.clients))
    print(f"{'figure':<36}{'measured':>12}  {'':<5}{'target':>12}")
    for row in rows:
        mark = "" if row.good else "  MISSED"
        print(f"{row.name:<36}{row.value:>12.2f}  {row.unit:<5}{row.bound:>4}{row.target:>8g}{mark}")
    print(f"load average of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"peak memory of this client: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
