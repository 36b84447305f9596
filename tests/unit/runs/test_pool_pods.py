"""What a pool has for its pods comes to those that do the work, in the pool that was planned for."""

from __future__ import annotations

from typing import Any

import pytest

from slipway_api.run import RunIdentity
from slipway_api.trainjob import Workers
from slipway_operator.config import PoolPodsConfig, RayConfig
from slipway_operator.kuberay import ray_job

from .test_cost import priced
from .world import World

PODS = {
    "nodeSelector": {"example.com/gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "annotations": {"example.com/networks": "ib0"},
    "resources": {"rdma/hca": 1},
    "env": {"NCCL_IB_HCA": "mlx5"},
}


def has_all(pod: dict[str, Any]) -> bool:
    [main] = pod["spec"]["containers"]
    return bool(
        pod["spec"].get("nodeSelector") == PODS["nodeSelector"]
        and pod["spec"].get("tolerations") == PODS["tolerations"]
        and pod["metadata"].get("annotations") == PODS["annotations"]
        and main["resources"]["limits"].get("rdma/hca") == main["resources"]["requests"].get("rdma/hca") == 1
        and {"name": "NCCL_IB_HCA", "value": "mlx5"} in main["env"]
    )


def has_nothing(pod: dict[str, Any]) -> bool:
    [main] = pod["spec"]["containers"]
    names = {variable["name"] for variable in main.get("env", [])}
    given = {*pod["spec"], *pod["metadata"]} & {"nodeSelector", "tolerations", "annotations"}
    return not given and "rdma/hca" not in main["resources"]["limits"] and "NCCL_IB_HCA" not in names


def templates(made: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    cluster = made["spec"]["rayClusterSpec"]
    return cluster["headGroupSpec"]["template"], [g["template"] for g in cluster.get("workerGroupSpecs", [])]


@pytest.mark.parametrize("alone", [False, True])
def test_the_pods_that_work_get_it(alone: bool) -> None:
    job = {"kind": "TrainJob", "metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": {}}
    run = RunIdentity(kind="trainjobs", namespace="n", name="a", uid="u", attempt=1, storage="file:///s", cache="/c")
    pool = PoolPodsConfig.model_validate(PODS)
    made = ray_job(job, "a-1", "true", run, Workers(), RayConfig(), pool, driver_alone=alone)
    head, workers = templates(made)
    assert has_all(head) if alone else has_nothing(head)
    assert all(map(has_all, workers))
    assert len(workers) == (0 if alone else 1)
    assert any(variable["name"] == "SLIPWAY_RUN" for variable in head["spec"]["containers"][0]["env"])


@pytest.mark.parametrize("given", [None, PoolPodsConfig()])
def test_without_any_nothing_changes(given: PoolPodsConfig | None) -> None:
    job = {"kind": "TrainJob", "metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": {}}
    run = RunIdentity(kind="trainjobs", namespace="n", name="a", uid="u", attempt=1, storage="file:///s", cache="/c")
    head, [worker] = templates(ray_job(job, "a-1", "true", run, Workers(), RayConfig(), given))
    assert has_nothing(head)
    assert has_nothing(worker)


@pytest.mark.parametrize(("named", "expected"), [(None, has_nothing), ("b", has_all)])
def test_it_is_that_of_the_pool_that_was_planned(named: str | None, expected: Any) -> None:
    changes = {"workers": {"count": 2, "pool": named}} if named else {}
    world = priced(World.of(**changes), {"name": "a"}, {"name": "b", "pods": PODS})
    world.settle()
    assert world.job["status"]["pool"] == (named or "a")
    assert expected(templates(world.children["RayJob", "job-1"])[1][0])
