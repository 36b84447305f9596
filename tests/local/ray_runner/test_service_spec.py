"""What of a RayService is honoured, what is refused with which words, and what the shared Serve gets of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from slipway_local.ray_runner.errors import InvalidSpec, MissingReference
from slipway_local.ray_runner.pod import ObjectRef
from slipway_local.ray_runner.resources import Resources
from slipway_local.ray_runner.serve_config import APPLICATION_PREFIX
from slipway_local.ray_runner.service import Service, candidate
from slipway_local.ray_runner.service_spec import read_rayservice
from slipway_local.ray_runner.service_translate import ServicePlan, translate_service
from slipway_local.ray_runner.translate import SERVICE_MARK, Place, references
from slipway_operator.kube.resource import Key

from .rayjobs import pod, with_at
from .rayservices import application, rayservice

NOW = datetime(2026, 11, 20, 10, 0, 0, tzinfo=UTC)
METADATA = {"namespace": "ml", "name": "chat", "uid": "0123456789ab"}
PLACE = Place(Path("/run/dir"), Path("/venv/bin"), "scope/0123456789ab", METADATA)


def plan(obj: dict[str, Any], objects: dict[ObjectRef, dict[str, bytes]] | None = None) -> ServicePlan:
    return translate_service(read_rayservice(obj), objects or {}, PLACE)


def service(deployment: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    made = application(**fields)
    made["deployments"] = [{"name": "Teller", **(deployment or {})}]
    return rayservice("chat", made)


ONE_CPU = {"ray_actor_options": {"num_cpus": 1}}


@pytest.mark.parametrize(
    ("deployment", "cpus", "gpus"),
    [
        ({}, "0.5", "0"),  # what the pods ask for: the code says what a replica takes, and nobody has read it yet
        ({"ray_actor_options": {"num_gpus": 0}}, "1", "0"),  # Serve's default for a replica
        ({"num_replicas": 3, "ray_actor_options": {"num_cpus": 1}}, "3", "0"),
        ({"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.25}}, "0.5", "0"),
        ({"ray_actor_options": {"num_cpus": 0, "num_gpus": 1}}, "0.5", "1"),  # the pods ask for half a CPU
        ({"autoscaling_config": {"min_replicas": 0, "max_replicas": 4}, **ONE_CPU}, "4", "0"),
        ({"autoscaling_config": {"min_replicas": 0}, **ONE_CPU}, "1", "0"),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 2}, **ONE_CPU}, "2", "0"),
        ({"num_replicas": 4, "max_surge_percent": 30, **ONE_CPU}, "6", "0"),
    ],
)
def test_a_service_holds_what_its_pods_or_its_replicas_need(deployment: dict[str, Any], cpus: str, gpus: str) -> None:
    assert read_rayservice(service(deployment)).need == Resources(Decimal(cpus), Decimal(gpus))


def test_a_cluster_that_may_grow_counts_as_grown() -> None:
    obj = service({"ray_actor_options": {"num_cpus": 0}})
    obj["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] = True
    obj["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"] = 4
    assert read_rayservice(obj).need.cpu == 2


def test_a_service_queues_for_what_it_lacks_and_no_longer() -> None:
    obj = service({"num_replicas": 2, **ONE_CPU})
    obj["metadata"] |= {"uid": "u", "creationTimestamp": "2026-11-20T10:00:00Z"}
    made = Service(Key("default", "chat"), "u", request=read_rayservice(obj), priority=7)
    capacity = Resources.of(4)

    def need() -> Resources | None:
        found = candidate(obj, made, capacity, NOW)
        return found.need if found is not None else None

    assert need() == Resources.of(2)
    made.held = Resources.of(0.5, memory=5)
    assert need() == Resources.of(1.5)
    made.refused = "Ray Serve refuses it"
    assert need() is None
    made.refused, made.not_before = "", NOW + timedelta(seconds=1)
    assert need() is None
    made.not_before, made.held = NOW, Resources.of(2)
    assert need() is None
    made.held = None
    obj["metadata"]["deletionTimestamp"] = "2026-11-20T10:00:00Z"
    assert need() is None


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("", "spec.serveConfigV2: is required"),
        ("a: [b", "spec.serveConfigV2: is not YAML"),
        ("[]", "spec.serveConfigV2: is required"),
        ("applications: []", "spec.serveConfigV2.applications: is required"),
        ("applications: [x]", "spec.serveConfigV2.applications: must be a list of objects"),
        ("applications: [{name: a}]", "spec.serveConfigV2.applications[0].import_path: is required"),
        ("applications: [{import_path: a:b, x: 1}]", "spec.serveConfigV2.applications[0].x: is unknown"),
        ("applications: [{import_path: a:b, args: {at: 2026-01-01}}]", "cannot express"),
        ("applications: [{import_path: a:b, args: {at: .nan}}]", "cannot express"),
        ("applications: [{import_path: a:b, name: a/b}]", "applications[0].name: must be without"),
        ("applications: [{import_path: a:b, route_prefix: x}]", "applications[0].route_prefix: must begin with '/'"),
        ("applications: [{import_path: a:b, route_prefix: /x/}]", "applications[0].route_prefix: must begin with '/'"),
        ("applications: [{import_path: a:b}, {import_path: a:b}]", "applications[1].name: 'default' is also"),
        (
            "applications: [{import_path: a:b}, {name: x, import_path: a:b}]",
            "applications[1].route_prefix: '/' is also that of applications[0]",
        ),
        ("applications: [{import_path: a:b, runtime_env: {pip: [x]}}]", "applications[0].runtime_env.pip: runs take"),
        ("applications: [{import_path: a:b, host: 0.0.0.0}]", "applications[0].host: is unknown"),
        ("http_options: {root_path: /x}\napplications: [{import_path: a:b}]", "http_options.root_path: is unknown"),
        ("target_capacity: 50\napplications: [{import_path: a:b}]", "spec.serveConfigV2.target_capacity: is unknown"),
        ("proxy_location: Disabled\napplications: [{import_path: a:b}]", "proxy_location: there is one HTTP proxy"),
    ],
)
def test_configurations_that_are_refused(config: str, says: str) -> None:
    obj = rayservice("chat", application())
    obj["spec"]["serveConfigV2"] = config
    with pytest.raises(InvalidSpec) as raised:
        read_rayservice(obj)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("deployment", "says"),
    [
        ({"num_replica": 2}, "deployments[0].num_replica: is unknown"),
        ({"num_replicas": "auto"}, "deployments[0].num_replicas: `auto` means up to 100"),
        ({"num_replicas": 0}, "deployments[0].num_replicas: must be a whole number"),
        ({"autoscaling_config": {"max_replicas": "x"}}, "autoscaling_config.max_replicas: must be a whole number"),
        ({"ray_actor_options": {"num_cpus": -1}}, "ray_actor_options.num_cpus: must be a number"),
        ({"ray_actor_options": {"accelerator_type": "H100"}}, "ray_actor_options.accelerator_type: is unknown"),
        ({"ray_actor_options": {"resources": {"TPU": 1}}}, "ray_actor_options.resources: is unknown"),
        ({"placement_group_bundles": [{"CPU": 1}]}, "deployments[0].placement_group_bundles: is unknown"),
    ],
)
def test_deployments_that_are_refused(deployment: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSpec) as raised:
        read_rayservice(service(deployment))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("spec.suspend", True, "spec.suspend: is not supported"),  # KubeRay 1.6 has no such field
        ("spec.upgradeStrategy.type", "NewClusterWithIncrementalUpgrade", "needs a second Ray cluster"),
        ("spec.upgradeStrategy.clusterUpgradeOptions", {"stepSizePercent": 5}, "is not supported"),
        ("spec.rayClusterConfig.suspend", True, "spec.rayClusterConfig.suspend: a part"),
        (
            "spec.rayClusterConfig.workerGroupSpecs[0].template.spec.initContainers",
            [{"name": "x"}],
            "spec.rayClusterConfig.workerGroupSpecs[0].template.spec.initContainers: is not supported",
        ),
    ],
)
def test_fields_that_are_refused(path: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidSpec) as raised:
        read_rayservice(with_at(service(), path, value))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("excludeHeadPodFromServeSvc", True),
        ("rayClusterDeletionDelaySeconds", 5),
        ("serviceUnhealthySecondThreshold", 5),
        ("upgradeStrategy", {"type": "NewCluster"}),
        ("managedBy", "ray.io/kuberay-operator"),
    ],
)
def test_fields_without_meaning_here_are_accepted(name: str, value: Any) -> None:
    assert read_rayservice(with_at(service(), f"spec.{name}", value)) == read_rayservice(service())


def test_names_and_routes_become_the_services_own() -> None:
    made = plan(
        rayservice(
            "chat",
            application("router", route="/"),
            application("admin", route="/admin"),
            application("v-1", route=None, runtime_env={"env_vars": {"A": "own"}}),
            worker=pod(cpu="500m", env=[{"name": "A", "value": "pod"}, {"name": "B", "value": "pod"}]),
            document={"http_options": {"host": "0.0.0.0", "port": 8000}, "logging_config": {"log_level": "DEBUG"}},
        )
    ).applications
    prefix = "ml_chat_01234567_"
    assert [one["name"] for one in made] == [f"{prefix}router", f"{prefix}admin", f"{prefix}v-1"]
    assert [one["route_prefix"] for one in made] == ["/ml/chat", "/ml/chat/admin", None]
    assert all(one["logging_config"] == {"log_level": "DEBUG"} for one in made)
    assert made[2]["runtime_env"]["env_vars"] == {
        "A": "own",
        "B": "pod",
        APPLICATION_PREFIX: prefix,
        SERVICE_MARK: "scope/0123456789ab",
        "RAY_worker_niceness": "0",
    }


def test_a_mounted_secret_is_found_in_arguments_and_user_config() -> None:
    worker = pod(cpu="500m", volumeMounts=[{"name": "keys", "mountPath": "/etc/keys"}])
    worker["spec"]["volumes"] = [{"name": "keys", "secret": {"secretName": "keys"}}]
    obj = rayservice(
        "chat",
        application(args={"auth": {"file": "/etc/keys/a"}}, user_config={"files": ["/etc/keys/a", "/etc/other"]}),
        worker=worker,
    )
    keys = ObjectRef("Secret", "keys")
    assert references(read_rayservice(obj)) == {keys: False}
    with pytest.raises(MissingReference):
        plan(obj)
    made = plan(obj, {keys: {"a": b"canary"}})
    assert made.files == {"mounts/etc/keys/a": b"canary"}
    assert made.applications[0]["args"] == {"auth": {"file": "/run/dir/mounts/etc/keys/a"}}
    assert made.applications[0]["deployments"][0]["user_config"] == {
        "files": ["/run/dir/mounts/etc/keys/a", "/etc/other"]
    }
    assert "canary" not in str(made.applications)


@pytest.mark.parametrize("side", ["headGroupSpec", "workerGroupSpecs[0]"])
def test_a_variable_from_a_secret_is_refused_wherever_it_stands(side: str) -> None:
    variable = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}}
    obj = with_at(service(), f"spec.rayClusterConfig.{side}.template.spec.containers[0].env", [variable])
    with pytest.raises(InvalidSpec, match=r"mount the Secret as a volume instead") as raised:
        plan(obj, {ObjectRef("Secret", "keys"): {"a": b"canary"}})
    assert raised.value.path.startswith(f"spec.rayClusterConfig.{side}")
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("name", [APPLICATION_PREFIX, SERVICE_MARK, "RAY_ADDRESS"])
def test_the_runners_own_variables_cannot_be_set(name: str) -> None:
    environment = {"env_vars": {name: "x"}}
    with pytest.raises(InvalidSpec, match=f"applications\\[0\\].runtime_env.env_vars.{name}: is set by the runner"):
        plan(rayservice("chat", application(runtime_env=environment)))
    with pytest.raises(InvalidSpec, match=f"ray_actor_options.runtime_env.env_vars.{name}: is set by the runner"):
        plan(service({"ray_actor_options": {"runtime_env": environment}}))
