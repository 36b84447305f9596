"""Run by Ray at the start of each worker process of the local control plane (ray_runner/serve_proxy.py says why)."""

from __future__ import annotations

import importlib
from typing import Any

_EVERYWHERE = ("[::]:", "0.0.0.0:")


def on_loopback(address: str) -> str:
    """The address, with the loopback interface for every interface."""
    for prefix in _EVERYWHERE:
        if address.startswith(prefix):
            return f"127.0.0.1:{address.removeprefix(prefix)}"
    return address


def grpc_on_loopback() -> None:
    """What Ray binds a gRPC server to on every interface is bound to loopback.

    The servers of a head's own processes are not Python's, and stay on loopback by --node-ip-address.
    """
    tls: Any = importlib.import_module("ray._common.tls_utils")
    add_port = tls.add_port_to_grpc_server

    def add_guarded(server: Any, address: str) -> Any:
        return add_port(server, on_loopback(address))

    tls.add_port_to_grpc_server = add_guarded
