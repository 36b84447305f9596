"""The real control plane itself: what survives, who may do what, and that nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from slipway_local.kubernetes.admin_client import AdminClient, AdminError
from slipway_local.kubernetes.binaries import API_SERVER, CONTROLLER_MANAGER, ETCD
from slipway_local.kubernetes.control_plane import ControlPlane, ControlPlaneError
from slipway_local.kubernetes.programs import Options
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import Forbidden
from slipway_operator.kube.resource import CONFIGMAPS

from .audit import read_writes
from .conftest import require_binaries

pytestmark = pytest.mark.kube

OPTIONS = Options(audit="writes", unsafe_no_fsync=True)
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str) -> dict[str, Any]:
    """A ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}


def eventually(check: Callable[[], bool], seconds: float) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(api: AdminClient) -> bool:
    """Whether the API server reads from etcd."""
    try:
        api.send("GET", CONFIG_MAPS, seconds=2.0)
    except AdminError:
        return False
    return True


def test_what_it_stores_survives_kills_and_a_start_in_the_same_directory(tmp_path: Path) -> None:
    require_binaries()
    directory = tmp_path / "plane"
    with ControlPlane(directory, OPTIONS) as plane:
        api, url = plane.admin(), plane.url
        ca, kubeconfig = plane.files.ca.read_bytes(), plane.kubeconfig.read_bytes()
        api.json("POST", CONFIG_MAPS, config_map("kept"))
        pids = plane.pids
        assert set(pids) == {ETCD, API_SERVER, CONTROLLER_MANAGER}
        assert directory.stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in (directory / "pki").iterdir())

        plane.kill(API_SERVER)
        assert plane.ended() == API_SERVER
        plane.restart(API_SERVER)
        plane.kill(ETCD)
        plane.restart(ETCD)
        eventually(lambda: answers(api), 30)
        assert plane.url == url
        assert api.json("GET", f"{CONFIG_MAPS}/kept")["metadata"]["name"] == "kept"

        plane.pause(API_SERVER)
        with pytest.raises(AdminError):
            api.send("GET", CONFIG_MAPS, seconds=0.5)
        plane.resume(API_SERVER)
        eventually(lambda: answers(api), 30)
        with pytest.raises(ControlPlaneError, match="another process serves"):
            ControlPlane(directory, OPTIONS).start()
        pids = plane.pids
    assert not any(psutil.pid_exists(pid) for pid in pids.values())

    with ControlPlane(directory, OPTIONS) as plane:
        assert (plane.url, plane.files.ca.read_bytes(), plane.kubeconfig.read_bytes()) == (url, ca, kubeconfig)
        assert plane.admin().json("GET", f"{CONFIG_MAPS}/kept")["metadata"]["name"] == "kept"


def test_what_a_killed_owner_left_is_ended_at_the_next_start(tmp_path: Path) -> None:
    require_binaries()
    directory, kubeconfig = tmp_path / "plane", tmp_path / "kubeconfig"
    words = ["-m", "slipway_local.kubernetes", "--state-dir", str(directory), "--kubeconfig", str(kubeconfig)]
    owner = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL)
    try:
        eventually(kubeconfig.exists, 90)
        left = psutil.Process(owner.pid).children()
        assert len(left) == 3
    finally:
        owner.kill()
        owner.wait(10)
    assert all(process.is_running() for process in left)
    with ControlPlane(directory, OPTIONS) as plane:
        assert not any(process.is_running() for process in left)
        assert len(plane.pids) == 3


async def test_users_and_service_accounts_have_no_rights_but_those_given(control_plane: ControlPlane) -> None:
    api, rbac = control_plane.admin(), "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
    role: dict[str, Any] = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "writer"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]}],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "writer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "writer"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"},
            {"kind": "ServiceAccount", "namespace": "default", "name": "default"},
        ],
    }
    api.json("POST", f"{rbac}/roles", role)
    api.json("POST", f"{rbac}/rolebindings", binding)
    robot = "system:serviceaccount:default:default"
    kubeconfigs = {
        "alice": control_plane.kubeconfig_for_user("alice"),
        "bob": control_plane.kubeconfig_for_user("bob", ("readers",)),
        robot: control_plane.kubeconfig_for_service_account("default", "default"),
    }
    for number, (user, path) in enumerate(kubeconfigs.items()):
        async with Client(await load_config(str(path)), attempts=1) as client:
            if user == "bob":
                with pytest.raises(Forbidden, match='User "bob" cannot create'):
                    await client.create(CONFIGMAPS, config_map(f"by-{number}"))
            else:
                await client.create(CONFIGMAPS, config_map(f"by-{number}"))
            with pytest.raises(Forbidden):
                await client.list(CONFIGMAPS, "default")
    seen = {(write.user, write.code) for write in read_writes(control_plane.audit_log, kubeconfigs)}
    assert seen == {("alice", 201), ("bob", 403), (robot, 201)}


def test_kubernetes_own_controllers_work(control_plane: ControlPlane) -> None:
    """A Job gets its pod, which stays pending: there are no nodes. Our definitions and KubeRay's are served."""
    api = control_plane.admin()
    container = {"name": "main", "image": "none"}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "work"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    api.json("POST", "/apis/batch/v1/namespaces/default/jobs", job)
    pods = "/api/v1/namespaces/default/pods?labelSelector=job-name%3Dwork"
    eventually(lambda: len(api.json("GET", pods)["items"]) == 1, 30)
    served = {row["name"] for row in api.json("GET", "/apis/ray.io/v1")["resources"]}
    assert {"rayjobs", "rayclusters", "rayservices"} <= served
    assert "trainjobs" in {row["name"] for row in api.json("GET", "/apis/slipway.dev/v1alpha1")["resources"]}
