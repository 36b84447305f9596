"""The command lines of etcd, kube-apiserver and kube-controller-manager on loopback. Says what to run; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from slipway_local.kubernetes import kubeconfigs
from slipway_local.kubernetes.certificates import Authority, KeyPair, signing_key
from slipway_local.kubernetes.definitions import Owner
from slipway_local.ports import keep_ports
from slipway_local.processes import write_private

Audit = Literal["off", "writes", "all"]
_WRITES = ["create", "update", "patch", "delete", "deletecollection"]
_ADMIN = "slipway-admin"
_LOOPBACK = "127.0.0.1"

# What works without nodes. Those that act on nodes and volumes would only watch; pod-garbage-collector would delete
# the pods that a test has put on a node that does not exist.
_CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "cronjob-controller",
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "statefulset-controller",
    "ttl-after-finished-controller",
    "validatingadmissionpolicy-status-controller",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What one control plane is asked to be."""

    audit: Audit = "off"
    """Which requests `audit.log` holds, one JSON line each, metadata only."""
    unsafe_no_fsync: bool = False
    """etcd does not wait for the disk: faster, and the death of the machine may lose everything."""
    definitions: tuple[Owner, ...] = ("slipway", "ray")
    """Whose CustomResourceDefinitions are installed at the start."""
    api_server_flags: Sequence[str] = ()
    """Added to kube-apiserver's command line."""


class Files:
    """The directory of one control plane: ports, certificates and kubeconfigs, made or found again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        pki = directory / "pki"
        pki.mkdir(mode=0o700, parents=True, exist_ok=True)
        ports = keep_ports(directory / "ports.json", ("etcd", "etcd_peer", "api_server", "controller_manager"))
        self.etcd_port, self.etcd_peer_port = ports["etcd"], ports["etcd_peer"]
        self.api_port, self.controller_manager_port = ports["api_server"], ports["controller_manager"]
        self.authority = Authority(pki, "ca")
        self.etcd_authority = Authority(pki, "etcd-ca")
        self.api_server = self.authority.server("apiserver")
        self.controller_manager = self.authority.server("controller-manager")
        self.etcd = self.etcd_authority.server("etcd")
        self.etcd_client = self.etcd_authority.client("apiserver-etcd-client", "kube-apiserver")
        self.admin = self.authority.client("admin", _ADMIN, ("system:masters",))
        self.service_account_key = signing_key(pki / "service-accounts.key")
        self.admin_kubeconfig = self.kubeconfig(directory / "admin.kubeconfig", self.admin)
        manager = self.authority.client("controller-manager-client", "system:kube-controller-manager")
        self.manager_kubeconfig = self.kubeconfig(directory / "controller-manager.kubeconfig", manager)

    @property
    def url(self) -> str:
        """Where the API server is."""
        return f"https://{_LOOPBACK}:{self.api_port}"

    @property
    def ca(self) -> Path:
        """The certificate that the API server's is signed with."""
        return self.authority.pair.certificate

    @property
    def audit_log(self) -> Path:
        """Written by the API server when it was asked to."""
        return self.directory / "audit.log"

    def kubeconfig(self, path: Path, pair: KeyPair) -> Path:
        """Writes a kubeconfig for a client certificate, and returns its path."""
        return kubeconfigs.with_certificate(path, self.url, self.ca, pair)


def etcd(files: Files, options: Options) -> list[str]:
    """One member, over TLS, for the API server's certificate only."""
    client, peer = f"https://{_LOOPBACK}:{files.etcd_port}", f"https://{_LOOPBACK}:{files.etcd_peer_port}"
    trusted = files.etcd_authority.pair.certificate
    return [
        "--name=default",
        f"--data-dir={files.directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        *_etcd_tls("", files.etcd, trusted),
        *_etcd_tls("peer-", files.etcd, trusted),
        "--log-level=warn",
        *(["--unsafe-no-fsync"] if options.unsafe_no_fsync else []),
    ]


def _etcd_tls(prefix: str, pair: KeyPair, trusted: Path) -> list[str]:
    return [
        f"--{prefix}cert-file={pair.certificate}",
        f"--{prefix}key-file={pair.key}",
        f"--{prefix}trusted-ca-file={trusted}",
        f"--{prefix}client-cert-auth",
    ]


def api_server(files: Files, options: Options) -> list[str]:
    """RBAC, the default admission plugins, client certificates and service account tokens."""
    return [
        f"--etcd-servers=https://{_LOOPBACK}:{files.etcd_port}",
        f"--etcd-cafile={files.etcd_authority.pair.certificate}",
        f"--etcd-certfile={files.etcd_client.certificate}",
        f"--etcd-keyfile={files.etcd_client.key}",
        f"--bind-address={_LOOPBACK}",
        f"--advertise-address={_LOOPBACK}",
        f"--secure-port={files.api_port}",
        f"--tls-cert-file={files.api_server.certificate}",
        f"--tls-private-key-file={files.api_server.key}",
        f"--client-ca-file={files.ca}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={files.service_account_key}",
        f"--service-account-signing-key-file={files.service_account_key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        # A loopback address may not stand in the endpoints of service default/kubernetes.
        "--endpoint-reconciler-type=none",
        "--profiling=false",
        *_audit(files, options.audit),
        *options.api_server_flags,
    ]


def _audit(files: Files, audit: Audit) -> list[str]:
    if audit == "off":
        return []
    recorded = {"level": "Metadata", **({"verbs": _WRITES} if audit == "writes" else {})}
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [recorded, {"level": "None"}],
    }
    path = files.directory / "audit-policy.yaml"
    write_private(path, yaml.safe_dump(policy, sort_keys=False).encode())
    # A request is answered only when its line is written: whoever has the answer finds the line.
    return [f"--audit-policy-file={path}", f"--audit-log-path={files.audit_log}", "--audit-log-mode=blocking-strict"]


def controller_manager(files: Files) -> list[str]:
    """The controllers that need no nodes, each with the rights of its own service account."""
    return [
        f"--kubeconfig={files.manager_kubeconfig}",
        f"--authentication-kubeconfig={files.manager_kubeconfig}",
        f"--authorization-kubeconfig={files.manager_kubeconfig}",
        f"--bind-address={_LOOPBACK}",
        f"--secure-port={files.controller_manager_port}",
        f"--tls-cert-file={files.controller_manager.certificate}",
        f"--tls-private-key-file={files.controller_manager.key}",
        f"--client-ca-file={files.ca}",
        f"--root-ca-file={files.ca}",
        f"--service-account-private-key-file={files.service_account_key}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        f"--controllers={','.join(_CONTROLLERS)}",
        "--profiling=false",
    ]
