"""The floor under benchmarks/control_plane.py: the writes of a TrainJob's life, by a client that does nothing else.

No operator, no watch, no decision: what an API server on this machine makes of these requests is the most that any
operator could reach that writes as much.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.resource import EVENTS, RAYJOBS, SECRETS, TRAINJOBS

MANAGER = "floor"
Json = dict[str, Any]


async def floor(kubeconfig: Path, example: str, count: int) -> float:
    """TrainJobs per second: `count` new ones, each with all that was written for the finished TrainJob `example`."""
    async with Client(await load_config(str(kubeconfig), None), request_timeout=120) as client:
        life = await _life_of(client, example)
        gate = asyncio.Semaphore(64)

        async def live(number: int) -> None:
            async with gate:
                await _live(client, life, f"floor-{number:05}")

        started = time.monotonic()
        await asyncio.gather(*map(live, range(count)))
        return count / (time.monotonic() - started)


async def _life_of(client: Client, name: str) -> dict[str, Json]:
    """What the API server holds of it, by kind."""
    job = await client.get(TRAINJOBS, "default", name)
    child = job["status"]["rayJobName"]
    found = {"TrainJob": job, "RayJob": await client.get(RAYJOBS, "default", child)}
    secrets, _ = await client.list(SECRETS, "default")
    found["Secret"] = next(one for one in secrets if one["metadata"]["name"].startswith(child))
    events, _ = await client.list(EVENTS, "default")
    found["Event"] = next(one for one in events if one["involvedObject"]["name"] == name)
    return found


async def _live(client: Client, life: dict[str, Json], name: str) -> None:
    """Create it, what belongs to it, and both kinds' statuses, in the order of a real life."""
    job = await client.create(TRAINJOBS, _new(life["TrainJob"], name))
    owner = job["metadata"]["uid"]
    await client.apply(SECRETS, _new(life["Secret"], f"{name}-1-run", owner), field_manager=MANAGER)
    await client.create(RAYJOBS, _new(life["RayJob"], f"{name}-1", owner))
    status = life["TrainJob"]["status"]
    unfinished = {key: value for key, value in status.items() if key not in ("model", "completionTime", "usage")}
    await _tell(client, job, unfinished)
    for run in ({"jobStatus": "RUNNING"}, life["RayJob"]["status"]):
        await client.merge_patch(RAYJOBS, "default", f"{name}-1", {"status": run}, subresource="status")
    await _tell(client, job, status)
    await client.create(EVENTS, _new(life["Event"], f"{name}.1"))


async def _tell(client: Client, job: Json, status: Json) -> None:
    metadata = {key: job["metadata"][key] for key in ("name", "namespace", "uid")}
    await client.apply_status(TRAINJOBS, {"metadata": metadata, "status": status}, field_manager=MANAGER)


def _new(obj: Json, name: str, owner: str = "") -> Json:
    """The object as a client would write it, under another name."""
    kept = {key: value for key, value in obj.items() if key not in ("metadata", "status")}
    metadata = {key: obj["metadata"][key] for key in ("namespace", "labels", "annotations") if key in obj["metadata"]}
    metadata["name"] = name
    if owner:
        metadata["ownerReferences"] = [{**obj["metadata"]["ownerReferences"][0], "name": name, "uid": owner}]
    return {**kept, "metadata": metadata}
