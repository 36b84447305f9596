"""Twenty small jobs at once: all end, in priority and age order, none lost, none run twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Stack, finished, train_job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

COUNT = 20
TRAINING = {"steps": 2, "globalBatchSize": 2, "microBatchSize": 2, "precision": "fp32"}
WORKERS = {"count": 1, "resources": {"cpu": "1", "memory": "512Mi"}}


def test_twenty_jobs(stack: Stack, corpus: Path) -> None:
    stack.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "urgent"},
            "value": 1000,
        }
    )
    jobs = []
    for i in range(COUNT):
        job = train_job(f"many-{i:02}", corpus, training=TRAINING, workers=WORKERS, strategy={"ddp": {}})
        del job["spec"]["data"]["evalSources"]
        if i >= COUNT - 4:
            job["spec"]["priorityClassName"] = "urgent"
        jobs.append(job)
    stack.apply(*jobs)
    for job in jobs:
        stack.wait(job["metadata"]["name"], finished, timeout=600)
    items = json.loads(stack.kubectl("get", "trainjobs", "-o", "json"))["items"]
    ours = {i["metadata"]["name"]: i for i in items if i["metadata"]["name"].startswith("many-")}
    assert len(ours) == COUNT
    assert [n for n, i in ours.items() if [a["outcome"] for a in i["status"]["attempts"]] != ["Succeeded"]] == []
    ray_jobs = json.loads(stack.kubectl("get", "rayjobs", "-o", "json"))["items"]
    started = {
        r["metadata"]["name"].removesuffix("-1"): r["status"]["rayJobInfo"]["startTime"]
        for r in ray_jobs
        if r["metadata"]["name"].startswith("many-")
    }
    assert set(started) == set(ours)
    assert_order(started)


def assert_order(started: dict[str, str]) -> None:
    """Two run at a time, and both ends are seconds: the order of starts is the order of the queue.

    The first two may have started before the urgent ones were there to be seen.
    """
    order = sorted(started, key=lambda name: (started[name], name))
    urgent = [f"many-{i:02}" for i in range(COUNT - 4, COUNT)]
    patient = [f"many-{i:02}" for i in range(COUNT - 4)]
    early = next(i for i, name in enumerate(order) if name in urgent)
    assert early <= 3, order
    assert in_order(order[early : early + 4], urgent), order
    assert in_order([n for n in order if n in patient], patient), order


def in_order(found: list[str], wanted: list[str]) -> bool:
    """Whether each stands at its place, or beside it: two start together, and either may be up first."""
    return sorted(found) == sorted(wanted) and all(abs(wanted.index(n) - i) <= 1 for i, n in enumerate(found))
