"""Jobs with a queue under the real Kueue and the real KubeRay, on a real API server, without nodes.

What is real: Kueue's webhooks, which look at each RayJob, its quota and preemption, KubeRay's pods, and our operator.
What is played: the kubelet (pod statuses).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from slipway_api import conditions as c
from slipway_local.kubernetes.binaries import CONTROLLER_MANAGER
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_local.kubernetes.programs import Options
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import KubeError
from slipway_operator.kube.resource import PODS, RAYJOBS, TRAINJOBS, Resource

from .cluster import Cluster, eventually, operating
from .conftest import require_binaries
from .fault_proxy import FaultProxy, lose_answer
from .kuberay_process import kuberay
from .kueue_process import kueue
from .test_kuberay import assert_shape, ended, gpu_jobs, pods_of, start_running

pytestmark = pytest.mark.slow

FLAVORS = Resource("kueue.x-k8s.io", "v1beta2", "resourceflavors", "ResourceFlavor", namespaced=False)
CLUSTER_QUEUES = Resource("kueue.x-k8s.io", "v1beta2", "clusterqueues", "ClusterQueue", namespaced=False)
LOCAL_QUEUES = Resource("kueue.x-k8s.io", "v1beta2", "localqueues", "LocalQueue")
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
PRIORITIES = Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False)

NO_RETRY = {"limit": 0, "backoffSeconds": 0}


@pytest.fixture(scope="module")
def queued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own: Kueue's webhooks see everybody's RayJobs."""
    require_binaries()
    require_binaries(["kuberay-operator", "kueue", "helm"])
    folder = tmp_path_factory.mktemp("kueue")
    with (
        ControlPlane(folder / "kubernetes", Options(unsafe_no_fsync=True)) as plane,
        kuberay(plane.kubeconfig, folder / "kuberay"),
        kueue(plane, folder / "kueue"),
    ):
        plane.restart(CONTROLLER_MANAGER)  # whose garbage collector looks for new kinds every half minute only
        yield plane


@pytest.fixture
async def admin(queued: ControlPlane) -> AsyncIterator[Client]:
    async with Client(await load_config(str(queued.kubeconfig), None)) as client:
        yield client


async def make(client: Client, resource: Resource, name: str, namespace: str | None = None, **body: Any) -> None:
    """Creates it, once Kueue's webhooks take it."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    obj = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **body}
    await eventually(lambda: client.create(resource, obj))


@pytest.fixture
async def team(admin: Client, namespace: str) -> AsyncIterator[Cluster]:
    """A namespace whose queue `training` has CPUs for one job of one worker, and five GPUs, on nodes of pool a."""
    cluster = await Cluster.make(admin, namespace)
    await make(admin, FLAVORS, namespace, spec={"nodeLabels": {"pool": "a"}})
    quotas = [
        {"name": name, "nominalQuota": quota}
        for name, quota in (("cpu", QUOTA_CPU), ("memory", "1Ti"), ("nvidia.com/gpu", "5"))
    ]
    resources = {"coveredResources": [q["name"] for q in quotas], "flavors": [{"name": namespace, "resources": quotas}]}
    await make(
        admin,
        CLUSTER_QUEUES,
        namespace,
        spec={
            "namespaceSelector": {},
            "resourceGroups": [resources],
            "preemption": {"withinClusterQueue": "LowerPriority"},
        },
    )
    await make(admin, LOCAL_QUEUES, "training", namespace, spec={"clusterQueue": namespace})
    yield cluster
    for job in await cluster.all(TRAINJOBS):
        await admin.delete(TRAINJOBS, namespace, job["metadata"]["name"])


# One CPU of the head and one of the worker; less than two jobs want.
QUOTA_CPU = "3"


@pytest.fixture
async def working(queued: ControlPlane, team: Cluster, tmp_path: Path) -> AsyncIterator[Cluster]:
    """The namespace with our operator, KubeRay and Kueue at work in it."""
    connection = await load_config(str(queued.kubeconfig), None)
    async with operating(connection, tmp_path, team.namespace):
        yield team


async def suspended(cluster: Cluster, name: str) -> bool | None:
    """Whether this RayJob is held back; None while it is not there."""
    found = [r for r in await cluster.all(RAYJOBS) if r["metadata"]["name"] == name]
    return bool(found[0]["spec"].get("suspend")) if found else None


async def workloads_of(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """Kueue's view of a RayJob, found as the condition's message tells to."""
    [ray_job] = [r for r in await cluster.all(RAYJOBS) if r["metadata"]["name"] == name]
    return await cluster.all(WORKLOADS, f"kueue.x-k8s.io/job-uid={ray_job['metadata']['uid']}")


async def test_jobs_take_turns_in_their_queue(working: Cluster) -> None:
    await working.create("first", queue="training", retry=NO_RETRY)
    await eventually(lambda: told_running(working, "first-1"))
    _, worker = await pods_of(working, "first")  # not running: KubeRay would look for its head for a while at the end
    assert worker["spec"]["nodeSelector"] == {"pool": "a"}, "what Kueue wrote is left alone"

    await working.create("second", queue="training", retry=NO_RETRY)
    message = await working.until("second", c.WAITING_FOR_QUOTA)
    assert "queue training" in message

    async def says_why() -> bool:
        reasons = [
            x for w in await workloads_of(working, "second-1") for x in w.get("status", {}).get("conditions", [])
        ]
        return any("insufficient unused quota for cpu" in x["message"] for x in reasons)

    await eventually(says_why)
    assert await suspended(working, "second-1") is True
    assert [p["metadata"]["labels"]["slipway.dev/trainjob"] for p in await working.all(PODS)] == ["first"] * 2
    assert (await working.condition("first"))[1] == c.WAITING_FOR_RESOURCES, "and the first goes on"

    await working.change(TRAINJOBS, "first", {"spec": {"suspend": True}})
    await eventually(lambda: told_running(working, "second-1"))
    await start_running(working, "second")
    assert await working.outcomes("first") == ["Suspended"]
    await working.change(TRAINJOBS, "first", {"spec": {"suspend": False}})
    await working.until("first", c.WAITING_FOR_QUOTA)

    for name in ("first", "second"):
        await working.client.delete(TRAINJOBS, working.namespace, name)

    async def nothing() -> bool:
        return not any([await working.all(kind) for kind in (RAYJOBS, PODS, WORKLOADS)])

    await eventually(nothing)


async def told_running(cluster: Cluster, ray_job: str) -> bool:
    return await suspended(cluster, ray_job) is False


async def test_kueue_does_look_at_them(working: Cluster) -> None:
    """Else nothing here says that it takes our RayJobs."""
    await working.create("job", queue="training")
    [ray_job] = await eventually(lambda: working.all(RAYJOBS))
    labels = {"kueue.x-k8s.io/queue-name": "training"}
    bad = {
        **{key: ray_job[key] for key in ("apiVersion", "kind")},
        "metadata": {"name": "bad", "namespace": working.namespace, "labels": labels},
        "spec": {**ray_job["spec"], "shutdownAfterJobFinishes": False},
    }
    with pytest.raises(KubeError, match=r"vrayjob\.kb\.io.*spec\.shutdownAfterJobFinishes"):
        await working.client.create(RAYJOBS, bad)


async def test_what_is_preempted_waits_in_the_queue_again(working: Cluster, admin: Client) -> None:
    urgent = f"{working.namespace}-urgent"
    await make(admin, PRIORITIES, urgent, value=1000)
    await working.create("calm", queue="training", retry=NO_RETRY)
    await start_running(working, "calm")
    await working.create("urgent", queue="training", priorityClassName=urgent, retry=NO_RETRY)
    await eventually(lambda: ended(working, "calm", 1))
    assert (await working.outcomes("calm"))[0] == "Preempted", "which counts for no retry"
    await start_running(working, "urgent")
    await working.until("calm", c.WAITING_FOR_QUOTA)
    assert await suspended(working, "calm-1") is None, "attempts are ours: the old RayJob is gone"
    assert await suspended(working, "calm-2") is True
    assert await working.outcomes("urgent") == [None]
    await working.client.delete(TRAINJOBS, working.namespace, "urgent")
    await eventually(lambda: told_running(working, "calm-2"))


async def test_a_queue_that_does_not_exist_is_named(working: Cluster) -> None:
    await working.create("lost", queue="nowhere")
    assert "queue nowhere" in await working.until("lost", c.WAITING_FOR_QUOTA)

    async def says_why() -> bool:
        reasons = [x for w in await workloads_of(working, "lost-1") for x in w.get("status", {}).get("conditions", [])]
        return any("nowhere" in x["message"] for x in reasons)

    await eventually(says_why)


async def test_the_queued_example_becomes_its_pods(working: Cluster, admin: Client) -> None:
    [job] = gpu_jobs(queued=True)
    name, spec = job["metadata"]["name"], job["spec"]
    await make(admin, PRIORITIES, spec["priorityClassName"], value=100)
    [group] = (await admin.get(CLUSTER_QUEUES, None, working.namespace))["spec"]["resourceGroups"]
    group["flavors"][0]["resources"][0]["nominalQuota"] = "33"  # four workers with eight CPUs, and the head
    await admin.merge_patch(CLUSTER_QUEUES, None, working.namespace, {"spec": {"resourceGroups": [group]}})
    await working.make_object(TRAINJOBS, name, spec)
    await assert_shape(working, job)


async def test_a_lost_answer_does_not_take_the_quota_back(queued: ControlPlane, team: Cluster, tmp_path: Path) -> None:
    upstream = await load_config(str(queued.kubeconfig), None)
    async with FaultProxy(upstream) as proxy:

        async def admitted_before_the_answer_is_lost(request: Any, passed: Any) -> Any:
            proxy.freeze_watches("rayjobs.ray.io")  # the operator will not see for a while that it is there
            answer = await passed()
            await eventually(lambda: told_running(team, "job-1"))
            request.transport.abort()
            return answer

        lost = proxy.fault(admitted_before_the_answer_is_lost, {"create"}, "rayjobs.ray.io", times=1)
        again = proxy.fault(lose_answer, {"create"}, "rayjobs.ray.io", times=2)
        async with operating(proxy.connection, tmp_path, team.namespace):
            await team.create("job", queue="training")
            await eventually(lambda: asyncio.sleep(0, lost.hit == 1 and again.hit == 2))
            assert await told_running(team, "job-1")
            await proxy.cut_watches("rayjobs.ray.io")
            await start_running(team, "job")
        assert await told_running(team, "job-1")
        assert await team.outcomes("job") == [None]
