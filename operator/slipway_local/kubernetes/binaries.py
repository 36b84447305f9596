"""Which commands a real control plane is made of, and where on this machine they are. Builds nothing (`build.py` does).

A command is taken from the first of these places that has it in an acceptable release:

1. the folder that KUBEBUILDER_ASSETS names, as for controller-runtime's envtest;
2. the cache, where `make control-plane` puts what it builds from the pins in tests/kube/controlplane;
3. PATH.

Acceptable: kube-apiserver, kube-controller-manager and kubectl of one minor release, the pinned one, since neither the
controller manager nor what kubectl prints may run ahead of the server; etcd 3.6 and later, Helm 4, and under the name
`helm3` Helm 3. The managers of KubeRay and Kueue cannot tell their release and are never taken from PATH. What comes
from the cache is what the pins say.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SERVERS = (ETCD, API_SERVER, CONTROLLER_MANAGER)
"""What a control plane is made of, in the order in which it starts."""

KUBERNETES_MINOR = (1, 37)
"""The Kubernetes release that this repository builds and is tested with."""

PINS = Path(__file__).resolve().parents[3] / "tests" / "kube" / "controlplane"
"""The Go modules that pin what is built; only a checkout of the repository has them."""

_PROBE_SECONDS = 20.0
# Raised when the way of building changes, so that what an older way has built is not taken.
_RECIPE = "1"


class MissingBinaryError(Exception):
    """A command is not on this machine in an acceptable release. The message says where it was looked for."""


def _kubernetes(release: tuple[int, ...]) -> bool:
    return release[:2] == KUBERNETES_MINOR


@dataclass(frozen=True, slots=True)
class Command:
    """One program: how it is built, and how its release is asked for and judged."""

    name: str
    module: str
    """The folder under PINS whose go.mod pins it."""
    package: str
    version_arguments: tuple[str, ...] = ()
    """What makes it print its release; empty: it cannot."""
    wants: str = ""
    accepts: Callable[[tuple[int, ...]], bool] = lambda release: True


_SAME = f"Kubernetes {KUBERNETES_MINOR[0]}.{KUBERNETES_MINOR[1]}"

COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command(
            "etcd", "kubernetes", "go.etcd.io/etcd/server/v3", ("--version",), "etcd >= 3.6", lambda r: r[:2] >= (3, 6)
        ),
        Command(
            "kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", ("--version",), _SAME, _kubernetes
        ),
        Command(
            "kube-controller-manager",
            "kubernetes",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            ("--version",),
            _SAME,
            _kubernetes,
        ),
        Command("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl", ("version", "--client"), _SAME, _kubernetes),
        Command(
            "helm", "kubernetes", "helm.sh/helm/v4/cmd/helm", ("version", "--short"), "Helm 4", lambda r: r[0] == 4
        ),
        # What the chart is held against as well; not part of a control plane.
        Command(
            "helm3", "kubernetes", "helm.sh/helm/v3/cmd/helm", ("version", "--short"), "Helm 3", lambda r: r[0] == 3
        ),
        Command("kuberay-operator", "kuberay", "github.com/ray-project/kuberay/ray-operator"),
        Command("kueue", "kueue", "sigs.k8s.io/kueue/cmd/kueue"),
    )
}


def digest(pins: Path = PINS) -> str:
    """What the cache folder is named after: the pins, the platform and the way of building."""
    seen = hashlib.sha256(f"{_RECIPE} {platform.system()} {platform.machine()}".encode())
    for path in sorted(pins.glob("*/go.*")):
        seen.update(f"\0{path.relative_to(pins)}\0".encode() + path.read_bytes())
    return seen.hexdigest()[:16]


def cache_folder(environment: Mapping[str, str] = os.environ, pins: Path = PINS) -> Path | None:
    """Where `make control-plane` puts `bin/`, `crds/` and `charts/`, there or not yet; None without the pins."""
    if not pins.is_dir():
        return None
    named = environment.get("XDG_CACHE_HOME")
    root = Path(named) if named else Path.home() / ".cache"
    return root / "slipway" / "control-plane" / digest(pins)


def find(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The program of that name. Raises MissingBinaryError."""
    command, refused = COMMANDS[name], []
    assets = environment.get("KUBEBUILDER_ASSETS")
    if assets and (path := Path(assets) / name).is_file():
        if (why := _objection(command, path)) is None:
            return path
        refused.append(f"{path} {why}")
    folder = cache_folder(environment)
    if folder is not None and (path := folder / "bin" / name).is_file():
        return path
    found = shutil.which(name, path=environment.get("PATH")) if command.version_arguments else None
    if found is not None:
        if (why := _objection(command, Path(found))) is None:
            return Path(found)
        refused.append(f"{found} {why}")
    places = f"KUBEBUILDER_ASSETS ({assets or 'not set'}), {folder or 'no cache without the repository'}, PATH"
    reasons = "".join(f"; {reason}" for reason in refused)
    raise MissingBinaryError(f"no {name} in {places}{reasons}. `make control-plane` builds it (needs Go)")


def missing(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The commands that `find` does not find, with its reason for each."""
    reasons = {}
    for name in COMMANDS:
        try:
            find(name, environment)
        except MissingBinaryError as error:
            reasons[name] = str(error)
    return reasons


def ray_definitions(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """KubeRay's own CustomResourceDefinitions (YAML), as the build has put them by; empty where nothing was built."""
    folder = cache_folder(environment)
    return sorted((folder / "crds").glob("ray.io_*.yaml")) if folder is not None else []


def kueue_chart(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Kueue's own Helm chart, which has its CustomResourceDefinitions and webhooks; None where nothing was built."""
    folder = cache_folder(environment)
    chart = folder / "charts" / "kueue" if folder is not None else None
    return chart if chart is not None and chart.is_dir() else None


def release(command: Command, path: Path) -> tuple[int, ...] | None:
    """The release that a program says it is, or None when it says nothing of the kind."""
    try:
        done = subprocess.run(
            [str(path), *command.version_arguments], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(int(part) for part in match.groups()) if match else None


def _objection(command: Command, path: Path) -> str | None:
    if not command.version_arguments:
        return None
    found = release(command, path)
    if found is None:
        return "does not say its release"
    if not command.accepts(found):
        return f"is {'.'.join(map(str, found))}, and {command.wants} is needed"
    return None
