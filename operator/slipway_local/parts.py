"""The parts of the local control plane, and what each is started with. Writes their configuration; starts nothing."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from slipway_local.layout import Layout
from slipway_local.machine import Machine
from slipway_local.ports import keep_ports
from slipway_local.processes import read_json, write_private

ControlPlaneKind = Literal["embedded", "kubernetes"]
"""Which API server the other parts work against: the one of `slipway_local.apiserver`, or a real kube-apiserver."""

API_SERVER = "apiserver"
RAY_RUNNER = "ray_runner"
OPERATOR = "operator"

SUPERVISED = "SLIPWAY_SUPERVISED"
"""Variable in the environment of every part: the state directory that it serves."""

_PORTS = ("reports", "metrics")
# A shell's own target, and what would make the parts' Python look elsewhere than in this installation.
_DROPPED = ("KUBECONFIG", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the control plane."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ports:
    """The operator's ports on 127.0.0.1. The API server remembers its own."""

    reports: int
    metrics: int


def choose_ports(layout: Layout) -> Ports:
    """The ports of last time; one that somebody else has taken since is replaced. Call only when nothing runs."""
    return Ports(**keep_ports(layout.ports, _PORTS))


def known_ports(layout: Layout) -> Ports | None:
    """The ports that were chosen, or None."""
    known = read_json(layout.ports)
    try:
        return Ports(**{name: int(known[name]) for name in _PORTS})  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return None


def known_control_plane(layout: Layout) -> ControlPlaneKind:
    """Which API server runs, or ran last."""
    try:
        return "kubernetes" if layout.control_plane.read_text().strip() == "kubernetes" else "embedded"
    except OSError:
        return "embedded"


def choose_control_plane(layout: Layout, kind: ControlPlaneKind) -> None:
    """Notes which API server is to run. Call only when none does: a kubeconfig of the other kind leads nowhere."""
    if known_control_plane(layout) != kind:
        layout.kubeconfig.unlink(missing_ok=True)
        write_private(layout.control_plane, kind.encode())


def write_operator_config(layout: Layout, ports: Ports, machine: Machine) -> bool:
    """Writes the operator's configuration and key; whether it differs from what was there."""
    if not layout.report_key.exists():
        write_private(layout.report_key, secrets.token_hex(32).encode())
    listen = f"127.0.0.1:{ports.reports}"
    document = {
        "storage": {"uri": layout.storage.as_uri()},
        "reports": {"listen": listen, "url": f"http://{listen}", "keyFile": str(layout.report_key)},
        "metrics": {"listen": f"127.0.0.1:{ports.metrics}"},
        "pools": [
            {
                "name": "local",
                "nodes": 1,
                "cpus": machine.cpus,
                "memory": f"{machine.memory // 1024**3}Gi",
                "gpus": machine.gpus,
            }
        ],
        "leaderElection": {"enabled": False},
    }
    text = yaml.safe_dump(document, sort_keys=False).encode()
    if layout.operator_config.exists() and layout.operator_config.read_bytes() == text:
        return False
    write_private(layout.operator_config, text)
    return True


def parts(layout: Layout, cpus: int | None) -> dict[str, Part]:
    """All parts by name, in the order in which they start; they stop in the opposite one."""
    # -P: the state directory, in which they start, has folders with the names of modules.
    python = (sys.executable, "-P", "-m")
    kubeconfig = ("--kubeconfig", str(layout.kubeconfig))
    made = (
        Part(API_SERVER, (*python, *_API_SERVERS[known_control_plane(layout)](layout))),
        Part(
            RAY_RUNNER,
            (
                *python,
                "slipway_local.ray_runner",
                *kubeconfig,
                *("--state-dir", str(layout.state_dir)),
                *(("--cpus", str(cpus)) if cpus else ()),
            ),
        ),
        Part(OPERATOR, (*python, "slipway_operator", "--config", str(layout.operator_config), *kubeconfig)),
    )
    return {part.name: part for part in made}


_API_SERVERS: Mapping[ControlPlaneKind, Callable[[Layout], tuple[str, ...]]] = {
    "embedded": lambda layout: ("slipway_local.apiserver", "--state-dir", str(layout.api_server)),
    "kubernetes": lambda layout: (
        *("slipway_local.kubernetes", "--state-dir", str(layout.kubernetes)),
        *("--kubeconfig", str(layout.kubeconfig)),
    ),
}


def environment(layout: Layout, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What every part inherits."""
    kept = {name: value for name, value in inherited.items() if name not in _DROPPED and not name.startswith("RAY_")}
    binaries = Path(sys.executable).absolute().parent
    return {
        **kept,
        "PATH": f"{binaries}:{kept.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
        "SLIPWAY_HOME": str(layout.state_dir),
        SUPERVISED: str(layout.state_dir),
    }
