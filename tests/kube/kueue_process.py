"""The real Kueue as a process, installed by its own chart: its definitions, its webhooks, its certificates.

What a cluster does for it is done here: a kubelet would mount its Secret, and its Service would lead to its pod.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from slipway_local.kubernetes import binaries
from slipway_local.kubernetes.control_plane import ControlPlane

from .kuberay_process import answers, free_port, manager

NAMESPACE, SECRET = "kueue-system", "kueue-webhook-server-cert"
# The definitions of the other kinds that it can queue are not here. Pods would be asked about one by one.
_GROUPS = {"kueue.x-k8s.io", "ray.io", "batch"}
_FRAMEWORKS = ["batch/job", "ray.io/rayjob", "ray.io/raycluster", "ray.io/rayservice"]
_TAKEN = ("CustomResourceDefinition", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration", "Secret")


@contextlib.contextmanager
def kueue(control_plane: ControlPlane, folder: Path, limit: float = 90.0) -> Iterator[Path]:
    """Kueue's manager at work; yields its log."""
    certificates, log = folder / "certificates", folder / "kueue.log"
    certificates.mkdir(parents=True)
    port, health = free_port(), free_port()
    objects = _rendered()
    [config] = [obj["data"]["controller_manager_config.yaml"] for obj in objects if obj["kind"] == "ConfigMap"]
    (folder / "config.yaml").write_text(
        yaml.safe_dump(
            {
                **yaml.safe_load(config),
                "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
                "metrics": {"bindAddress": f"127.0.0.1:{free_port()}"},
                "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(certificates)},
                "leaderElection": {"leaderElect": False},
                "integrations": {"frameworks": _FRAMEWORKS},
                "featureGates": {"VisibilityOnDemand": False},
            }
        )
    )
    kubectl = [str(binaries.find("kubectl")), "--kubeconfig", str(control_plane.kubeconfig)]
    _run([*kubectl, "create", "namespace", NAMESPACE])
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(_installed(objects, port))})
    _run([*kubectl, "apply", "--server-side", "-f", "-"], manifest)
    command = [
        str(binaries.find("kueue")),
        f"--config={folder / 'config.yaml'}",
        f"--kubeconfig={control_plane.kubeconfig}",
    ]

    def ready() -> bool:
        return _mounted(kubectl, certificates) and answers(f"http://127.0.0.1:{health}/readyz")

    with manager("Kueue", command, log, ready, limit):
        yield log


def _rendered() -> list[dict[str, Any]]:
    chart = binaries.kueue_chart()
    assert chart is not None
    text = _run([str(binaries.find("helm")), "template", "kueue", str(chart), "--namespace", NAMESPACE])
    return [obj for obj in yaml.safe_load_all(text) if obj]


def _installed(objects: list[dict[str, Any]], port: int) -> Iterator[dict[str, Any]]:
    """What the API server needs of them, with the webhooks on this port of this machine."""
    for obj in objects:
        if obj["kind"] not in _TAKEN:
            continue
        if "webhooks" in obj:
            obj["webhooks"] = [
                hook
                for hook in obj["webhooks"]
                if {group for rule in hook["rules"] for group in rule["apiGroups"]} <= _GROUPS
            ]
            assert obj["webhooks"]
            for hook in obj["webhooks"]:
                hook["clientConfig"]["service"]["port"] = port
        conversion = obj.get("spec", {}).get("conversion", {}).get("webhook")
        if conversion:
            conversion["clientConfig"]["service"]["port"] = port
        yield obj
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kueue-webhook-service", "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    }


def _mounted(kubectl: list[str], folder: Path) -> bool:
    """Whether the certificates are there, once Kueue has put them into its Secret."""
    secret = json.loads(_run([*kubectl, "get", "secret", SECRET, "-n", NAMESPACE, "-o", "json"]))
    data = secret.get("data") or {}
    if not data.get("tls.crt"):
        return False
    for name, value in data.items():
        (folder / name).write_bytes(base64.b64decode(value))
    return True


def _run(command: list[str], stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
