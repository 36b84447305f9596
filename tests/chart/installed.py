"""The operator as the chart installs it, on a control plane without nodes, and what it has asked of the API server."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from .conftest import NAMESPACE, RELEASE, Cluster

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"


@contextlib.contextmanager
def operator(
    cluster: Cluster, directory: Path, *, tls_secret: str = f"{RELEASE}-report-tls", reports: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The operator as the chart's Deployment starts it, on this machine: its configuration, Secrets and account.

    `reports`: the host:port that runs reach it under. There is no Service without nodes.
    """
    (text,) = [cluster.get("configmap", RELEASE, NAMESPACE)["data"]["operator.yaml"]]
    for folder, secret in (("report-key", f"{RELEASE}-report-key"), ("report-tls", tls_secret)):
        (directory / folder).mkdir(parents=True, exist_ok=True)
        for name, value in cluster.get("secret", secret, NAMESPACE)["data"].items():
            (directory / folder / name).write_bytes(base64.b64decode(value))
    config = yaml.safe_load(text.replace("/etc/slipway", str(directory)))
    config["metrics"]["listen"], config["reports"]["listen"] = "127.0.0.1:0", reports or "127.0.0.1:0"
    if reports is not None:
        config["reports"]["url"] = f"https://{reports}"
    (directory / "operator.yaml").write_text(yaml.safe_dump(config))
    kubeconfig = cluster.control_plane.kubeconfig_for_service_account(NAMESPACE, RELEASE)
    with (directory / "operator.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "slipway_operator", "--config", str(directory / "operator.yaml")),
                *("--kubeconfig", str(kubeconfig)),
            ],
            stderr=log,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def requests_of(cluster: Cluster, user: str) -> tuple[set[str], set[str]]:
    """What this user has asked of resources, by the audit log: ({verb resource}, {those refused, with namespace})."""
    used, refused = set(), set()
    for line in cluster.control_plane.audit_log.read_text().splitlines():
        event = json.loads(line)
        target = event.get("objectRef")
        if event["user"]["username"] != user or not target or event["stage"] != "ResponseComplete":
            continue
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        label = f"{event['verb']} {resource}" + (f".{target['apiGroup']}" if target.get("apiGroup") else "")
        used.add(label)
        if event["responseStatus"]["code"] == 403:
            refused.add(f"{label} in {target['namespace']}")
    return used, refused
