"""A Deployment's RayService under the real KubeRay operator, on a real API server, without nodes.

What is real and what is played is told in test_kuberay.py. KubeRay asks the head's dashboard for the state of Ray
Serve, and no head runs: a RayService gets as far as a RayCluster whose pods are ready, and stays `Initializing`. What
only Serve could tell (its applications' states) is not seen here; tests/e2e/test_deployment.py sees it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_api import conditions as c
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.resource import DEPLOYMENTS, EVENTS, NETWORKPOLICIES, PODS, RAYSERVICES, SECRETS, Resource

from . import kubelet
from .cluster import POLICY, RAYCLUSTERS, Cluster, eventually, operating
from .conftest import require_binaries
from .kuberay_process import kuberay

pytestmark = pytest.mark.slow

SERVICES = Resource("", "v1", "services", "Service")
# A fixed number of replicas: no autoscaler.
SPEC: dict[str, Any] = {
    "model": {"uri": "s3://models/m"},
    "replicas": {"max": 2, "min": 2, "resources": {"cpu": "3", "memory": "5Gi", "gpu": 1}},
    "auth": {"apiKeys": {"name": "keys"}},
}


@pytest.fixture(scope="module")
def ray_operator(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    require_binaries(["kuberay-operator"])
    with kuberay(control_plane.kubeconfig, tmp_path_factory.mktemp("kuberay")) as log:
        yield log


@pytest.fixture
async def working(
    control_plane: ControlPlane, admin: Client, namespace: str, ray_operator: Path, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """A namespace that admits only restricted pods, with our operator and KubeRay at work in it."""
    cluster = await Cluster.make(admin, namespace, **{"pod-security.kubernetes.io__enforce": "restricted"})
    connection = await load_config(str(control_plane.kubeconfig), None)
    async with operating(connection, tmp_path, namespace, network_policy=POLICY):
        yield cluster


async def pods_of(cluster: Cluster, name: str = "chat", count: int = 4) -> list[dict[str, Any]]:
    """The head, then the workers, once all are there."""

    async def all_there() -> list[dict[str, Any]] | None:
        pods = await cluster.all(PODS, f"slipway.dev/deployment={name}")
        return pods if len(pods) == count else None

    pods: list[dict[str, Any]] = await eventually(all_there)
    return sorted(pods, key=lambda pod: pod["metadata"]["labels"]["ray.io/node-type"])


async def until(cluster: Cluster, type_: str, reason: str) -> str:
    """The message of a condition of the Deployment once it has this reason."""

    async def told() -> str | None:
        status = (await cluster.client.get(DEPLOYMENTS, cluster.namespace, "chat")).get("status") or {}
        found = c.find_condition(status.get("conditions", []), type_)
        return str(found["message"]) if found and found["reason"] == reason else None

    return str(await eventually(told))


async def test_a_rayservice_becomes_a_cluster_and_pods_as_it_says(working: Cluster) -> None:
    await working.make_object(DEPLOYMENTS, "chat", SPEC)
    head, *workers = await pods_of(working)
    [cluster] = await working.all(RAYCLUSTERS)

    async def accepted() -> dict[str, Any] | None:
        found = await working.client.get(RAYSERVICES, working.namespace, "chat")
        pending = (found.get("status") or {}).get("pendingServiceStatus") or {}
        return found if pending.get("rayClusterName") else None

    service = await eventually(accepted)
    ready = c.find_condition(service["status"]["conditions"], "Ready")
    assert ready is not None
    assert (ready["status"], ready["reason"]) == ("False", "Initializing"), "not ValidationFailed"
    assert service["status"]["pendingServiceStatus"]["rayClusterName"] == cluster["metadata"]["name"]
    assert cluster["metadata"]["ownerReferences"][0]["uid"] == service["metadata"]["uid"]
    [group] = cluster["spec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3), "one more, for a candidate"
    assert [container["name"] for container in head["spec"]["containers"]] == ["ray-head"]
    assert {pod["metadata"]["labels"]["ray.io/group"] for pod in workers} == {"replicas"}

    for pod in (head, *workers):
        labels, spec = pod["metadata"]["labels"], pod["spec"]
        assert labels["slipway.dev/deployment"] == "chat"
        assert labels["app.kubernetes.io/managed-by"] == "slipway"
        assert labels["ray.io/cluster"] == cluster["metadata"]["name"]
        # The account of the namespace, whose credentials are in no container.
        assert spec["serviceAccountName"] == "default"
        assert spec["automountServiceAccountToken"] is False
        assert not [volume for volume in spec["volumes"] if "projected" in volume]
        assert spec["securityContext"]["runAsNonRoot"] is True
        secrets = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
        assert secrets == {"run": "chat-serve", "keys": "keys"}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["image"] == "slipway/serving:0.1.0"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, container["name"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            token = next(e for e in container["env"] if e["name"] == "RAY_AUTH_TOKEN")["valueFrom"]["secretKeyRef"]
            secret = await working.client.get(SECRETS, working.namespace, token["name"])
            assert secret["data"][token["key"]]
    head_container, worker_container = kubelet.container_of(head), kubelet.container_of(workers[0])
    assert "ray start --head" in head_container["args"][0]
    assert "--num-cpus=0" in head_container["args"][0]
    assert head_container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
    assert "ray start " in worker_container["args"][0]
    assert "--num-gpus=1" in worker_container["args"][0]
    assert worker_container["resources"]["limits"] == {"cpu": "3", "memory": "5Gi", "nvidia.com/gpu": "1"}
    report = await working.client.get(SECRETS, working.namespace, "chat-serve")
    assert report["data"]["report-token"] not in json.dumps([head, *workers, service])

    policy = await working.client.get(NETWORKPOLICIES, working.namespace, "chat-serve")
    assert policy["spec"]["podSelector"]["matchLabels"] == {"slipway.dev/deployment": "chat"}


async def test_where_pods_come_and_go_only_rays_autoscaler_has_credentials(working: Cluster) -> None:
    replicas = {"min": 0, "max": 2, "resources": SPEC["replicas"]["resources"]}
    await working.make_object(DEPLOYMENTS, "chat", SPEC | {"replicas": replicas})
    head, worker = await pods_of(working, count=2)
    [cluster] = await working.all(RAYCLUSTERS)
    [group] = cluster["spec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 0, 3)
    directory = "/var/run/secrets/kubernetes.io/serviceaccount"
    holders = {
        container["name"]
        for pod in (head, worker)
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        if directory in {mount["mountPath"] for mount in container.get("volumeMounts", [])}
    }
    assert holders == {"autoscaler"}, "admitted by the restricted standard as well, or the pod would not be there"
    account = head["spec"]["serviceAccountName"]
    assert account != "default", "KubeRay made one, with rights in this namespace only"
    roles = await working.all(Resource("rbac.authorization.k8s.io", "v1", "roles", "Role"))
    assert [role["metadata"]["ownerReferences"][0]["uid"] for role in roles] == [cluster["metadata"]["uid"]]


async def test_the_vllm_example_becomes_its_pods(working: Cluster) -> None:
    example = Path(__file__).parents[2] / "examples" / "gpu" / "llama-8b-vllm.yaml"
    spec = yaml.safe_load(example.read_text())["spec"]
    await working.make_object(DEPLOYMENTS, "llama-8b", spec)
    head, worker = await pods_of(working, "llama-8b", count=2)
    limits = kubelet.container_of(worker)["resources"]["limits"]
    assert limits == {"cpu": "12", "memory": "120Gi", "nvidia.com/gpu": "2"}
    assert "--num-gpus=2" in kubelet.container_of(worker)["args"][0]
    assert "nvidia.com/gpu" not in kubelet.container_of(head)["resources"]["limits"]
    [service] = await working.all(RAYSERVICES)
    apps = json.loads(service["spec"]["serveConfigV2"])["applications"]
    assert [app["import_path"] for app in apps] == ["slipway_serving.app:router", "slipway_serving.vllm.app:engine"]


async def test_what_its_pods_suffer_reaches_the_conditions(working: Cluster) -> None:
    await working.make_object(DEPLOYMENTS, "chat", SPEC)
    head, worker, *others = await pods_of(working)
    await kubelet.find_no_node(working, worker, "0/5 nodes are available: 5 Insufficient nvidia.com/gpu.")
    assert "Insufficient nvidia.com/gpu" in await until(working, c.AVAILABLE, c.UNSCHEDULABLE)
    await kubelet.wait(working, head, "ErrImagePull", "manifest unknown")
    message = await until(working, c.AVAILABLE, c.IMAGE_PULL_FAILED)
    assert "manifest unknown" in message
    assert kubelet.container_of(head)["image"] in message
    assert "manifest unknown" in await until(working, c.DEGRADED, c.IMAGE_PULL_FAILED)

    async def has_event() -> bool:
        return any(event["reason"] == c.IMAGE_PULL_FAILED for event in await working.all(EVENTS))

    await eventually(has_event)
    for pod in (head, worker, *others):
        await kubelet.run(working, pod)
    await until(working, c.AVAILABLE, c.DEPLOYING)
    await kubelet.kill_for_memory(working, head)
    message = await until(working, c.AVAILABLE, c.OUT_OF_MEMORY_KILLED)
    assert "ray.headMemory" in message
    await until(working, c.DEGRADED, c.OUT_OF_MEMORY_KILLED)


async def test_deletion_leaves_nothing(working: Cluster) -> None:
    await working.make_object(DEPLOYMENTS, "chat", SPEC)
    await pods_of(working)
    await working.client.delete(DEPLOYMENTS, working.namespace, "chat")

    async def nothing() -> bool:
        kinds = (DEPLOYMENTS, RAYSERVICES, RAYCLUSTERS, PODS, SERVICES, SECRETS, NETWORKPOLICIES)
        return not any([await working.all(kind) for kind in kinds])

    await eventually(nothing)
    with pytest.raises(NotFound):
        await working.client.get(RAYSERVICES, working.namespace, "chat")
