"""Joining a Ray cluster, leaving it, and whether it has room: what every driver needs. Imports ray and no torch."""

from __future__ import annotations

import logging
import os

import ray

from slipway_api.quantity import parse_quantity
from slipway_api.trainjob import WorkerResources, Workers
from slipway_jobs.errors import InfrastructureError


def connect(address: str | None = None) -> None:
    """Join the Ray cluster (default: the one of RAY_ADDRESS, or of this machine).

    Raises InfrastructureError RayUnreachable, at once or after minutes: the caller must not wait for it.
    """
    # Ray complains that it cannot install its own SIGTERM handler from a thread. The driver has one.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        ray.init(address=where, logging_level=logging.WARNING, log_to_driver=True)
    except Exception as error:
        raise InfrastructureError("RayUnreachable", f"cannot join the Ray cluster at {where}: {error}") from error


def disconnect() -> None:
    """Leave the cluster: every process of this job ends."""
    ray.shutdown()


def worker_resources(resources: WorkerResources) -> dict[str, float]:
    """What each worker asks of Ray. Not memory: the pod bounds it, and Ray's own figure is 70% of the pod's."""
    wanted = {"CPU": float(parse_quantity(resources.cpu))}
    if resources.gpu:
        wanted["GPU"] = float(resources.gpu)
    return wanted


def missing_resources(workers: Workers) -> str:
    """What the whole cluster lacks for all workers at once, in words; empty when there is enough."""
    there = ray.cluster_resources()
    lacking = []
    for name, each in worker_resources(workers.resources).items():
        if each * workers.count > there.get(name, 0.0) + 1e-9:
            lacking.append(f"{each * workers.count:g} {name}, there are {there.get(name, 0.0):g}")
    return "; ".join(lacking)
