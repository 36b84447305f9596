"""Our RayJobs under the real KubeRay operator, on a real API server, without nodes.

What is real: admission (pod security *restricted*), KubeRay's RayCluster, services, Secret and pods, garbage
collection, and our operator. What is played: the kubelet and the scheduler (pod statuses). KubeRay reaches no head,
because none runs: it gets a RayJob as far as jobDeploymentStatus Running, and what only a head could tell it
(jobStatus) is not seen here. Kueue joins in test_kueue.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_api import conditions as c
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_operator.config import PoolConfig
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import Forbidden
from slipway_operator.kube.resource import EVENTS, PODS, RAYJOBS, SECRETS, TRAINJOBS, Resource

from . import kubelet
from .cluster import RAYCLUSTERS, Cluster, eventually, operating
from .conftest import require_binaries
from .kuberay_process import kuberay

pytestmark = pytest.mark.slow

SERVICES = Resource("", "v1", "services", "Service")


@pytest.fixture(scope="module")
def ray_operator(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    require_binaries(["kuberay-operator"])
    with kuberay(control_plane.kubeconfig, tmp_path_factory.mktemp("kuberay")) as log:
        yield log


@pytest.fixture
async def team(admin: Client, namespace: str) -> Cluster:
    """A namespace that admits only restricted pods."""
    return await Cluster.make(admin, namespace, **{"pod-security.kubernetes.io__enforce": "restricted"})


@pytest.fixture
async def working(
    control_plane: ControlPlane, team: Cluster, ray_operator: Path, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """The namespace with our operator and KubeRay at work in it."""
    connection = await load_config(str(control_plane.kubeconfig), None)
    async with operating(connection, tmp_path, team.namespace):
        yield team


async def pods_of(
    cluster: Cluster, name: str, attempt: int = 1, count: int = 2
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(head, a worker) once all pods are there."""

    async def all_there() -> list[dict[str, Any]] | None:
        pods = await cluster.pods(name, attempt)
        return pods if len(pods) == count else None

    pods = await eventually(all_there)
    by_type = {pod["metadata"]["labels"]["ray.io/node-type"]: pod for pod in pods}
    return by_type["head"], by_type["worker"]


async def start_running(cluster: Cluster, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Until KubeRay takes the Ray cluster for ready and the RayJob for running."""
    head, worker = await pods_of(cluster, name)
    await kubelet.run(cluster, head)
    await kubelet.run(cluster, worker)
    await cluster.until(name, c.STARTING)
    return head, worker


async def test_a_rayjob_becomes_pods_as_it_says(working: Cluster) -> None:
    await working.create(
        "job", workers={"count": 2, "resources": {"cpu": "3", "memory": "5Gi", "gpu": 1}}, strategy={"fsdp": {}}
    )
    head, worker = await pods_of(working, "job", count=3)
    await working.until("job", c.WAITING_FOR_RESOURCES)

    [ray_job] = await working.all(RAYJOBS)
    spec = ray_job["spec"]
    assert (spec["submissionMode"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == ("HTTPMode", 0, True)
    assert ray_job["metadata"]["finalizers"] == ["ray.io/rayjob-finalizer"]
    assert ray_job["status"]["jobDeploymentStatus"] == "Initializing"
    [cluster] = await working.all(RAYCLUSTERS)
    assert cluster["metadata"]["name"] == ray_job["status"]["rayClusterName"]
    assert cluster["metadata"]["annotations"]["ray.io/disable-provisioned-head-restart"] == "true"

    for pod, role in ((head, "head"), (worker, "worker")):
        labels, pod_spec = pod["metadata"]["labels"], pod["spec"]
        assert (labels["slipway.dev/trainjob"], labels["slipway.dev/attempt"]) == ("job", "1")
        assert labels["ray.io/cluster"] == cluster["metadata"]["name"]
        assert pod_spec["automountServiceAccountToken"] is False
        assert pod_spec["securityContext"]["runAsNonRoot"] is True
        for container in [*pod_spec.get("initContainers", []), *pod_spec["containers"]]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, (role, container["name"])
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            token = next(e for e in container["env"] if e["name"] == "RAY_AUTH_TOKEN")
            secret = await working.client.get(SECRETS, working.namespace, token["valueFrom"]["secretKeyRef"]["name"])
            assert secret["data"][token["valueFrom"]["secretKeyRef"]["key"]]

    head_container, worker_container = kubelet.container_of(head), kubelet.container_of(worker)
    assert "ray start --head" in head_container["args"][0]
    assert "--num-cpus=0" in head_container["args"][0]
    assert "ray start " in worker_container["args"][0]
    assert "--num-gpus=1" in worker_container["args"][0]
    assert worker_container["resources"]["limits"] == {"cpu": "3", "memory": "5Gi", "nvidia.com/gpu": "1"}
    assert "SLIPWAY_RUN" in {e["name"] for e in head_container["env"]}
    assert "SLIPWAY_RUN" not in {e["name"] for e in worker_container["env"]}
    [volume] = [v for v in head["spec"]["volumes"] if v["name"] == "run"]
    report = await working.client.get(SECRETS, working.namespace, volume["secret"]["secretName"])
    assert set(report["data"]) == {"report-token"}
    assert report["data"]["report-token"] not in json.dumps([head, worker, ray_job])


async def test_the_namespace_does_refuse_what_is_not_restricted(team: Cluster) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "free", "namespace": team.namespace},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    with pytest.raises(Forbidden, match="restricted"):
        await team.client.create(PODS, pod)


async def test_why_it_waits_follows_the_pods(working: Cluster) -> None:
    await working.create("job")
    head, worker = await pods_of(working, "job")
    await kubelet.find_no_node(working, worker, "0/5 nodes are available: 5 Insufficient nvidia.com/gpu.")
    assert "Insufficient nvidia.com/gpu" in await working.until("job", c.UNSCHEDULABLE)
    await kubelet.wait(working, worker, "ContainerCreating")
    await working.until("job", c.PULLING_IMAGES)
    await kubelet.wait(working, head, "ErrImagePull", "manifest unknown")
    message = await working.until("job", c.IMAGE_PULL_FAILED)
    assert "manifest unknown" in message
    assert kubelet.container_of(head)["image"] in message
    await eventually(lambda: has_event(working, c.IMAGE_PULL_FAILED))
    await kubelet.wait(working, head, "CreateContainerConfigError", 'secret "x" not found')
    await working.until("job", c.CONTAINER_CONFIG_ERROR)
    await kubelet.run(working, head)
    await working.until("job", c.PULLING_IMAGES)
    await kubelet.run(working, worker)
    await working.until("job", c.STARTING)
    assert await working.outcomes("job") == [None]


GPU_EXAMPLES = Path(__file__).parents[2] / "examples" / "gpu"


def gpu_jobs(*, queued: bool) -> list[dict[str, Any]]:
    """The TrainJobs of examples/gpu, with or without a queue."""
    documents = [one for path in sorted(GPU_EXAMPLES.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]
    return [one for one in documents if one["kind"] == "TrainJob" and ("queue" in one["spec"]) == queued]


def documented_pools() -> list[PoolConfig]:
    """The pools of docs/install.md that say what their pods get."""
    text = (Path(__file__).parents[2] / "docs" / "install.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    return [PoolConfig.model_validate(p) for block in blocks for p in block.get("pools", []) if "pods" in p]


async def assert_shape(cluster: Cluster, job: dict[str, Any], devices: dict[str, str] | None = None) -> None:
    """The pods of a job's first attempt are what its manifest asks for; `devices`: what their pool adds."""
    name, workers = job["metadata"]["name"], job["spec"]["workers"]
    resources = workers["resources"]

    async def all_there() -> list[dict[str, Any]] | None:
        pods = await cluster.pods(name)
        return pods if len(pods) == workers["count"] + 1 else None

    pods: list[dict[str, Any]] = await eventually(all_there, 120)
    found = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "worker"]
    assert len(found) == workers["count"]
    limits = {"cpu": resources["cpu"], "memory": resources["memory"], "nvidia.com/gpu": str(resources["gpu"])}
    limits |= devices or {}
    for pod in found:
        container = kubelet.container_of(pod)
        assert container["resources"]["limits"] == container["resources"]["requests"] == limits
        assert f"--num-gpus={resources['gpu']}" in container["args"][0]
        assert pod["spec"].get("priorityClassName") == job["spec"].get("priorityClassName")
    [head] = [pod for pod in pods if pod not in found]
    assert "nvidia.com/gpu" not in kubelet.container_of(head)["resources"]["limits"]

    async def counted() -> dict[str, Any] | None:
        [one] = await cluster.all(RAYCLUSTERS)
        return one if (one.get("status") or {}).get("desiredGPU") else None

    status = (await eventually(counted))["status"]
    assert (status["desiredWorkerReplicas"], status["desiredGPU"]) == (workers["count"], str(len(found)))


@pytest.mark.parametrize("job", gpu_jobs(queued=False), ids=lambda job: str(job["metadata"]["name"]))
async def test_the_gpu_examples_become_their_pods(
    control_plane: ControlPlane, team: Cluster, ray_operator: Path, tmp_path: Path, job: dict[str, Any]
) -> None:
    """On the nodes that docs/install.md describes, which have InfiniBand; still admitted as restricted."""
    connection, name = await load_config(str(control_plane.kubeconfig), None), job["metadata"]["name"]
    async with operating(connection, tmp_path, team.namespace, pools=documented_pools()):
        await team.make_object(TRAINJOBS, name, job["spec"])
        await assert_shape(team, job, {"rdma/hca_shared_devices_a": "1"})
        for pod in await team.pods(name):
            container, works = kubelet.container_of(pod), pod["metadata"]["labels"]["ray.io/node-type"] == "worker"
            variables = {e["name"]: e.get("value") for e in container["env"]}
            assert (variables.get("NCCL_IB_HCA") == "mlx5") == works
            assert (pod["spec"].get("nodeSelector") == {"example.com/gpu": "h100"}) == works
            taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
            assert (taint in pod["spec"]["tolerations"]) == works
            assert ("k8s.v1.cni.cncf.io/networks" in pod["metadata"]["annotations"]) == works
        assert (await team.status(name))["pool"] == "h100-infiniband"


async def has_event(cluster: Cluster, reason: str) -> bool:
    return any(event["reason"] == reason for event in await cluster.all(EVENTS))


@pytest.mark.parametrize("role", ["head", "worker"])
@pytest.mark.parametrize(
    ("happens", "outcome", "counted"),
    [(kubelet.evict, "Preempted", False), (kubelet.kill_for_memory, "OutOfMemory", True)],
)
async def test_what_a_pod_suffers_ends_the_attempt_and_the_next_one_follows(
    working: Cluster, role: str, happens: Any, outcome: str, counted: bool
) -> None:
    await working.create("job", retry={"limit": 1 if counted else 0, "backoffSeconds": 0})
    head, worker = await start_running(working, "job")
    await happens(working, head if role == "head" else worker)
    await eventually(lambda: ended(working, "job", 1))
    assert (await working.outcomes("job"))[0] == outcome
    await pods_of(working, "job", attempt=2)
    assert [r["metadata"]["name"] for r in await working.all(RAYJOBS)] == ["job-2"], "never two of them"
    planned = (await working.condition("job", c.PLANNED))[2]
    assert ("microBatchSize 2" in planned) == (outcome == "OutOfMemory")


async def ended(cluster: Cluster, name: str, number: int) -> bool:
    outcomes = await cluster.outcomes(name)
    return len(outcomes) >= number and outcomes[number - 1] is not None


async def test_a_lost_head_is_not_replaced_and_ends_the_attempt(working: Cluster) -> None:
    await working.create("job", retry={"limit": 1, "backoffSeconds": 0})
    head, _ = await start_running(working, "job")
    await working.client.delete(PODS, working.namespace, head["metadata"]["name"])
    await working.until("job", c.HEAD_LOST)
    assert {p["metadata"]["labels"]["ray.io/node-type"] for p in await working.pods("job")} == {"worker"}
    await eventually(lambda: ended(working, "job", 1))
    [first, *_] = (await working.status("job"))["attempts"]
    assert first["outcome"] == "Infrastructure"
    assert "head pod" in first["message"]
    await pods_of(working, "job", attempt=2)


@pytest.mark.parametrize("at", ["RayJob", "RayCluster", "Pod"])
async def test_deletion_in_the_middle_of_creation_leaves_nothing(working: Cluster, at: str) -> None:
    await working.create("job", workers={"count": 4})
    made = {"RayJob": RAYJOBS, "RayCluster": RAYCLUSTERS, "Pod": PODS}[at]
    await eventually(lambda: working.all(made))
    await working.client.delete(TRAINJOBS, working.namespace, "job")

    async def nothing() -> bool:
        kinds = (TRAINJOBS, RAYJOBS, RAYCLUSTERS, PODS, SERVICES, SECRETS)
        return not any([await working.all(kind) for kind in kinds])

    await eventually(nothing)
