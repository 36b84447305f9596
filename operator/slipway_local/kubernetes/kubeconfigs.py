"""Kubeconfigs for one API server: a file with everything in it, so that it can be handed to another process."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import yaml

from slipway_local.kubernetes.certificates import KeyPair
from slipway_local.processes import write_private

CONTEXT = "slipway-kube"


def with_certificate(path: Path, server: str, ca: Path, pair: KeyPair) -> Path:
    """A kubeconfig for whom a client certificate names."""
    user = {"client-certificate-data": _data(pair.certificate), "client-key-data": _data(pair.key)}
    return _write(path, server, ca, user)


def with_token(path: Path, server: str, ca: Path, token: str) -> Path:
    """A kubeconfig for whom a bearer token names."""
    return _write(path, server, ca, {"token": token})


def _write(path: Path, server: str, ca: Path, user: dict[str, Any]) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": {"server": server, "certificate-authority-data": _data(ca)}}],
        "users": [{"name": CONTEXT, "user": user}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT, "namespace": "default"}}],
        "current-context": CONTEXT,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, yaml.safe_dump(document, sort_keys=False).encode())
    return path


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
