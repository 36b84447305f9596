"""What the operator's runtime costs, on one core and a local HTTP server that does nothing else.

    python benchmarks/kube_runtime.py

Prints watch events per second through reflector, store and queue into a reconcile that does nothing, with 10,000
objects in the cache; memory per cached object, whole and projected; CPU per PATCH; and the process's resident size. The
server runs in a process of its own, so that only the client's cost is counted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
from aiohttp import web

from slipway_operator.kube.client import Client
from slipway_operator.kube.config import ConnectionConfig, StaticAuth
from slipway_operator.kube.controller import Controller, Key
from slipway_operator.kube.limiter import AdaptiveLimiter
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.outcomes import Done, Outcome
from slipway_operator.kube.queue import WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import RAYJOBS
from slipway_operator.kube.store import Projection, Store, keep

OBJECTS = 10_000
EVENTS = 20_000
PATCHES = 5_000


def ray_job(number: int, version: int) -> dict[str, Any]:
    """About 3.5 KiB of JSON, shaped as a RayJob with two pod templates and managedFields."""
    container = {
        "name": "ray",
        "image": "registry.example/slipway/jobs:1",
        "env": [{"name": f"VARIABLE_{index}", "value": f"value-{index}-of-{number}"} for index in range(12)],
        "resources": {"limits": {"cpu": "8", "memory": "64Gi"}, "requests": {"cpu": "8", "memory": "64Gi"}},
        "volumeMounts": [{"name": f"volume-{index}", "mountPath": f"/mnt/{index}"} for index in range(4)],
    }
    template = {"metadata": {"labels": {"app": f"job-{number}"}}, "spec": {"containers": [container]}}
    fields: dict[str, Any] = {f"f:field{index}": {"f:sub": {}, "f:other": {}} for index in range(20)}
    return {
        "metadata": {
            "name": f"job-{number}",
            "namespace": f"team-{number % 50}",
            "uid": f"00000000-0000-4000-8000-{number:012}",
            "resourceVersion": str(version),
            "labels": {"slipway.dev/train-job": f"job-{number}", "slipway.dev/attempt": "1"},
            "managedFields": [{"manager": "slipway", "operation": "Apply", "fieldsV1": fields}],
        },
        "spec": {
            "entrypoint": f"python -m slipway_jobs.train --run {number}",
            "suspend": False,
            "rayClusterSpec": {
                "headGroupSpec": {"template": template},
                "workerGroupSpecs": [{"groupName": "workers", "replicas": 4, "template": template}],
            },
        },
        "status": {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "rayClusterName": f"job-{number}-x"},
    }


def serve(ready: Connection) -> None:
    """The server's process: one list of all objects, watches that send all events at once, patches that echo."""
    stream = b"".join(
        json.dumps({"type": "MODIFIED", "object": ray_job(n % OBJECTS, 2 * OBJECTS + n)}).encode() + b"\n"
        for n in range(EVENTS)
    )

    async def get(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            for start in range(0, len(stream), 2**18):
                await response.write(stream[start : start + 2**18])
            await asyncio.sleep(600)
            return response
        start = int(request.query.get("continue", 0))
        items = [ray_job(number, OBJECTS + number) for number in range(start, start + 500)]
        metadata = {"resourceVersion": str(2 * OBJECTS)}
        if start + 500 < OBJECTS:
            metadata["continue"] = str(start + 500)
        return web.json_response({"metadata": metadata, "items": items})

    async def patch(request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), content_type="application/json")

    async def main() -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/{path:.*}", get)
        app.router.add_patch("/{path:.*}", patch)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.send(runner.addresses[0][1])
        await asyncio.sleep(600)

    asyncio.run(main())


def resident() -> int:
    """Bytes resident in memory (Linux)."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - read many times, and not a file
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


async def memory_per_object(client: Client, project: Projection | None) -> float:
    """KiB per object of a full list of OBJECTS, after the garbage of the pages is gone."""
    gc.collect()
    before = resident()
    store = Store(RAYJOBS, project=project)
    objects = [store.prepare(obj) async for page, _ in client.list_pages(RAYJOBS) for obj in page]
    store.replace(objects, "1")
    del objects
    gc.collect()
    assert len(store) == OBJECTS
    return (resident() - before) / OBJECTS / 1024


async def events_per_second(client: Client, project: Projection | None) -> tuple[float, float]:
    """(events per second of wall time, µs of CPU per event) from the socket to the end of a reconcile."""
    metrics = Metrics()
    store = Store(RAYJOBS, project=project)
    reflector = Reflector(client, store, metrics=metrics)
    reconciles = 0

    async def reconcile(_: Key) -> Outcome:
        nonlocal reconciles
        reconciles += 1
        return Done()

    queue = WorkQueue(metrics=metrics)
    controller = Controller("bench", queue, reconcile, metrics=metrics)
    controller.watches(reflector)
    watching = asyncio.create_task(reflector.run())
    await reflector.synced.wait()
    working = asyncio.create_task(controller.run())
    started, cpu = time.perf_counter(), time.process_time()
    last = str(2 * OBJECTS + EVENTS - 1)
    while store.resource_version != last or len(queue) or queue.in_flight:  # noqa: ASYNC110 - polling disturbs least
        await asyncio.sleep(0.01)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    for task in (watching, working):
        task.cancel()
    await asyncio.wait([watching, working])
    return EVENTS / wall, cpu / EVENTS * 1e6


PATCH = {"status": {"conditions": [{"type": "Running", "status": "True", "message": "m" * 200}]}}


async def cpu_per_patch(send: Callable[[int], Awaitable[object]]) -> tuple[float, float]:
    """(µs of CPU, requests per second of wall time), 16 at a time."""
    numbers = iter(range(PATCHES))

    async def worker() -> None:
        for number in numbers:
            await send(number)

    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(16)))
    wall = time.perf_counter() - started
    return (time.process_time() - cpu) / PATCHES * 1e6, PATCHES / wall


async def cpu_per_bare_patch(port: int) -> float:
    """µs of CPU for the same request by aiohttp alone: the floor, measured in the same run."""
    async with aiohttp.ClientSession() as session:

        async def send(number: int) -> None:
            url = f"http://127.0.0.1:{port}{RAYJOBS.path('ns', f'job-{number}', 'status')}"
            async with session.patch(url, data=json.dumps(PATCH)) as answer:
                json.loads(await answer.read())

        return (await cpu_per_patch(send))[0]


async def measure(port: int) -> list[tuple[str, str]]:
    """The rows of the table."""
    projection = keep("status", "spec.suspend")
    config = ConnectionConfig(f"http://127.0.0.1:{port}", StaticAuth())
    async with Client(config, limiter=AdaptiveLimiter()) as client:
        start = resident()
        bare = await cpu_per_bare_patch(port)
        per_patch, patches = await cpu_per_patch(
            lambda number: client.merge_patch(RAYJOBS, "ns", f"job-{number}", PATCH, subresource="status")
        )
        projected = await memory_per_object(client, projection)
        whole = await memory_per_object(client, None)
        rate, cpu = await events_per_second(client, projection)
        return [
            ("object on the wire", f"{len(json.dumps(ray_job(1, 1))) / 1024:.1f} KiB"),
            ("resident at the start", f"{start / 2**20:.0f} MiB"),
            ("cached object, projected", f"{projected:.1f} KiB"),
            ("cached object, whole but managedFields", f"{whole:.1f} KiB"),
            (f"watch events with {OBJECTS:,} cached", f"{rate:,.0f} /s"),
            ("CPU per watch event", f"{cpu:.0f} µs"),
            ("CPU per PATCH", f"{per_patch:.0f} µs"),
            ("CPU per PATCH, aiohttp alone", f"{bare:.0f} µs"),
            ("PATCH, 16 at a time", f"{patches:,.0f} /s"),
        ]


def main() -> None:
    """Starts the server, measures, prints."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    try:
        for name, value in asyncio.run(measure(here.recv())):
            print(f"{name:42} {value:>12}")
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
