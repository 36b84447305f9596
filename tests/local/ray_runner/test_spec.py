"""What of a RayJob is honoured, and what is refused with its path."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from slipway_api.run import RunIdentity
from slipway_api.trainjob import WorkerResources, Workers
from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.resources import Resources
from slipway_local.ray_runner.spec import read_rayjob
from slipway_operator.config import RayConfig
from slipway_operator.kuberay import ray_job

from .rayjobs import pod, rayjob, with_at

GI = 1024**3
HEAD = "spec.rayClusterSpec.headGroupSpec"
GROUP = "spec.rayClusterSpec.workerGroupSpecs[0]"


@pytest.mark.parametrize(
    ("job", "need"),
    [
        (rayjob(workers=2, cpu="1"), Resources(cpu=Decimal(2))),
        (rayjob(workers=3, cpu="500m", memory="1Gi"), Resources(Decimal("1.5"), Decimal(0), Decimal(3 * GI))),
        (rayjob(workers=2, gpu=4, cpu="8"), Resources(Decimal(16), Decimal(8), Decimal(0))),
        # The head is this machine: it counts only if there is nothing else, and its GPUs always.
        (rayjob(workers=1, head=pod(cpu="4", gpu=1)), Resources(Decimal(1), Decimal(1), Decimal(0))),
        (rayjob(workers=0, head=pod(cpu="2", memory="1Gi")), Resources(Decimal(2), Decimal(0), Decimal(GI))),
        (with_at(rayjob(workers=1), f"{GROUP}.numOfHosts", 3), Resources(cpu=Decimal(3))),
        # The larger of request and limit.
        (with_at(rayjob(), f"{GROUP}.template.spec.containers[0].resources.limits.cpu", "2"), Resources(Decimal(2))),
    ],
)
def test_need(job: dict[str, Any], need: Resources) -> None:
    assert read_rayjob(job).need == need


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec.clusterSelector", {"a": "b"}, "spec.clusterSelector"),
        ("spec.backoffLimit", 2, "spec.backoffLimit"),
        ("spec.submissionMode", "InteractiveMode", "spec.submissionMode"),
        ("spec.submitterPodTemplate", {"spec": {}}, "spec.submitterPodTemplate"),
        ("spec.deletionStrategy", {"deletionRules": [1]}, "spec.deletionStrategy"),
        ("spec.preRunningDeadlineSeconds", 5, "spec.preRunningDeadlineSeconds"),
        ("spec.entrypoint", " ", "spec.entrypoint"),
        ("spec.entrypoint", 3, "spec.entrypoint"),
        ("spec.entrypointResources", '{"tpu": 1}', "spec.entrypointResources"),
        ("spec.activeDeadlineSeconds", 0, "spec.activeDeadlineSeconds"),
        ("spec.jobId", "a/b", "spec.jobId"),
        ("spec.runtimeEnvYAML", "pip: [torch]", "spec.runtimeEnvYAML.pip"),
        ("spec.runtimeEnvYAML", "a: [", "spec.runtimeEnvYAML"),
        ("spec.runtimeEnvYAML", "- a", "spec.runtimeEnvYAML"),
        ("spec.rayClusterSpec.enableInTreeAutoscaling", True, "spec.rayClusterSpec.enableInTreeAutoscaling"),
        ("spec.rayClusterSpec.gcsFaultToleranceOptions", {"a": 1}, "spec.rayClusterSpec.gcsFaultToleranceOptions"),
        (f"{GROUP}.rayStartParams.resources", '"{\\"x\\": 1}"', f"{GROUP}.rayStartParams.resources"),
        (f"{GROUP}.replicas", -1, f"{GROUP}.replicas"),
        (f"{GROUP}.replicas", "2", f"{GROUP}.replicas"),
        (f"{GROUP}.suspend", True, f"{GROUP}.suspend"),
        (f"{HEAD}.template.spec.hostNetwork", True, f"{HEAD}.template.spec.hostNetwork"),
        (f"{HEAD}.template.spec.initContainers", [{"name": "a"}], f"{HEAD}.template.spec.initContainers"),
        (f"{HEAD}.template.spec.containers[1]", {"name": "sidecar"}, f"{HEAD}.template.spec.containers[1]"),
        (f"{HEAD}.template.spec.containers[0].command", ["sh"], f"{HEAD}.template.spec.containers[0].command"),
        (
            f"{GROUP}.template.spec.containers[0].resources.limits.cpu",
            "many",
            f"{GROUP}.template.spec.containers[0].resources.limits[cpu]",
        ),
        (
            f"{GROUP}.template.spec.containers[0].resources.limits.google_com/tpu",
            1,
            f"{GROUP}.template.spec.containers[0].resources.limits[google_com/tpu]",
        ),
        (
            f"{HEAD}.template.spec.containers[0].env[0]",
            {"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "x"}}},
            f"{HEAD}.template.spec.containers[0].env[0].valueFrom.resourceFieldRef",
        ),
        (
            f"{HEAD}.template.spec.containers[0].env[0]",
            {"name": "A=B;rm -rf", "value": "x"},
            f"{HEAD}.template.spec.containers[0].env[0].name",
        ),
        (
            f"{HEAD}.template.spec.containers[0].volumeMounts[0]",
            {"name": "nowhere", "mountPath": "/x"},
            f"{HEAD}.template.spec.containers[0].volumeMounts[0].name",
        ),
    ],
)
def test_refused_with_its_path(path: str, value: Any, told: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read_rayjob(with_at(rayjob(), path, value))
    assert caught.value.path == told
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("volume", "mount", "told"),
    [
        ({"hostPath": {"path": "/etc"}}, {"mountPath": "/x"}, f"{HEAD}.template.spec.volumes[0].hostPath"),
        (
            {"persistentVolumeClaim": {"claimName": "a"}},
            {"mountPath": "/x"},
            f"{HEAD}.template.spec.volumes[0].persistentVolumeClaim",
        ),
        ({"secret": {"secretName": "s"}}, {"mountPath": "/a/../../x"}, "volumeMounts[0].mountPath"),
        ({"secret": {"secretName": "s"}}, {"mountPath": "x"}, "volumeMounts[0].mountPath"),
        (
            {"secret": {"secretName": "s", "items": [{"key": "k", "path": "../../up"}]}},
            {"mountPath": "/x"},
            "volumes[0].secret.items[0].path",
        ),
        ({"secret": {"secretName": "s"}}, {"mountPath": "/x", "subPath": "/abs"}, "volumeMounts[0].subPath"),
    ],
)
def test_volumes_that_are_refused(volume: dict[str, Any], mount: dict[str, Any], told: str) -> None:
    head = pod(volumeMounts=[{"name": "v", **mount}])
    head["spec"]["volumes"] = [{"name": "v", **volume}]
    with pytest.raises(InvalidSpec) as caught:
        read_rayjob(rayjob(head=head))
    assert caught.value.path.endswith(told)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{HEAD}.template.spec.nodeSelector", {"gpu": "h100"}),
        (f"{HEAD}.template.spec.tolerations", [{"key": "a"}]),
        (f"{HEAD}.template.spec.serviceAccountName", "x"),
        (f"{HEAD}.template.spec.containers[0].imagePullPolicy", "Always"),
        ("spec.submitterConfig", {"backoffLimit": 2}),
        ("spec.submissionMode", "K8sJobMode"),
        ("spec.clusterSelector", {}),
        ("spec.managedBy", "ray.io/kuberay-operator"),
    ],
)
def test_accepted_though_it_means_nothing_here(path: str, value: Any) -> None:
    assert read_rayjob(with_at(rayjob(), path, value)).entrypoint == "true"


def test_times_and_ids() -> None:
    request = read_rayjob(rayjob(activeDeadlineSeconds=5, ttlSecondsAfterFinished=7, jobId="mine", metadata={"a": "b"}))
    assert (request.deadline, request.ttl, request.job_id, request.metadata) == (5, 7, "mine", {"a": "b"})
    # 0 is what the CRD defaults to; in a cluster the pods go then, and the object stays.
    assert read_rayjob(rayjob(ttlSecondsAfterFinished=0)).ttl is None


def test_suspend_needs_shutdown_as_in_kuberay() -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.suspend"):
        read_rayjob(with_at(rayjob(suspend=True), "spec.shutdownAfterJobFinishes", False))


def test_what_the_operator_renders_is_accepted() -> None:
    job = {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "t", "namespace": "default", "uid": "u"},
        "spec": {"priorityClassName": "high"},
    }
    run = RunIdentity(kind="trainjobs", namespace="default", name="t", uid="u", attempt=1, storage="/s", cache="/c")
    workers = Workers(count=2, resources=WorkerResources(cpu="1", memory="2Gi"))
    request = read_rayjob(ray_job(job, "t-1", "python -m slipway_jobs.train", run, workers, RayConfig()))
    assert request.head.priority_class == "high"
    assert request.need == Resources(Decimal(2), Decimal(0), Decimal(4 * GI))


def test_a_run_whose_driver_works_alone_needs_what_its_head_is_given() -> None:
    job = {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default", "uid": "u"},
        "spec": {},
    }
    run = RunIdentity(kind="deployments", namespace="default", name="d", uid="u", attempt=1, storage="/s", cache="/c")
    workers = Workers(count=1, resources=WorkerResources(cpu="500m", memory="512Mi", gpu=1))
    made = ray_job(job, "d-c1", "python -m slipway_jobs.compress", run, workers, RayConfig(), driver_alone=True)
    request = read_rayjob(made)
    assert request.groups == ()
    assert request.need == Resources(Decimal("0.5"), Decimal(1), Decimal(GI + GI // 2))
    assert request.entrypoint_gpus == 1
