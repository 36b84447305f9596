"""`python -m slipway_local.kubernetes.build`: builds the commands of a control plane that this machine does not have.

It compiles the Go modules in tests/kube/controlplane into the cache folder that `binaries.cache_folder` names after
their content: unchanged pins build nothing, changed pins build into a new folder. A program appears under its name when
it is whole. Go fetches the sources from the module proxy and holds them against go.sum.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slipway_local.kubernetes import binaries
from slipway_local.kubernetes.binaries import COMMANDS, PINS, Command

# Two compilers at a time: linking kube-apiserver alone takes 2 GiB.
_PARALLEL = "2"
_RAY_CRDS = ("ray.io_rayclusters.yaml", "ray.io_rayjobs.yaml", "ray.io_rayservices.yaml")
_KUBERNETES = "k8s.io/kubernetes"
_HELM, _HELM_3 = "helm.sh/helm/v4", "helm.sh/helm/v3"
_KUBERAY = "github.com/ray-project/kuberay/ray-operator"
_KUEUE = "sigs.k8s.io/kueue"


class BuildError(Exception):
    """Something cannot be built. The message says what, and what to do."""


def build(progress: Callable[[str], None] = lambda line: None) -> Path:
    """Builds what is missing and returns the cache folder; `progress` gets a line per step. Raises BuildError."""
    folder = binaries.cache_folder()
    if folder is None:
        raise BuildError(f"there is no {PINS}: the control plane is built in a checkout of the repository")
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    with _alone(folder / ".lock"):
        wanted = list(binaries.missing())
        definitions = [name for name in _RAY_CRDS if not (folder / "crds" / name).exists()]
        chart = folder / "charts" / "kueue"
        if (wanted or definitions or not chart.is_dir()) and shutil.which("go") is None:
            raise BuildError(f"Go is not on PATH, and {', '.join(wanted or definitions or [chart.name])} must be built")
        for name in wanted:
            started = time.monotonic()
            progress(f"building {name}")
            _compile(COMMANDS[name], folder / "bin" / name)
            progress(f"built {name} ({time.monotonic() - started:.0f} s)")
        if definitions:
            source = Path(_go(PINS / "kuberay", "list", "-m", "-f", "{{.Dir}}", _KUBERAY).strip())
            (folder / "crds").mkdir(exist_ok=True)
            for name in definitions:
                _put(source / "config" / "crd" / "bases" / name, folder / "crds" / name)
        if not chart.is_dir():
            source = Path(_go(PINS / "kueue", "list", "-m", "-f", "{{.Dir}}", _KUEUE).strip())
            _put_folder(source / "charts" / "kueue", chart)
    return folder


def pinned(module: str, pins: Path = PINS) -> str:
    """The version of a Go module that the pins name, such as v1.37.1. Raises BuildError when there is none."""
    for path in sorted(pins.glob("*/go.mod")):
        if match := re.search(rf"^\s*(?:require\s+)?{re.escape(module)} (v\S+)", path.read_text(), re.MULTILINE):
            return match[1]
    raise BuildError(f"no go.mod in {pins} requires {module}")


def _compile(command: Command, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        _go(
            *(PINS / command.module, "build", "-p", _PARALLEL, "-trimpath"),
            *("-ldflags", f"-s -w {_stamps()}", "-o", str(temporary), command.package),
        )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _stamps() -> str:
    """Linker flags that make the programs say the release that they were built from; the same ones for all."""
    version = pinned(_KUBERNETES)
    major, minor = version.removeprefix("v").split(".")[:2]
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    flags = [
        f"-X {package}.{name}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in values.items()
    ]
    flags += [f"-X {helm}/internal/version.version={pinned(helm)}" for helm in (_HELM_3, _HELM)]
    # The Kubernetes that `helm template` and `helm lint` take for given; Helm 4 finds it out by itself.
    flags += [
        f"-X {_HELM_3}/pkg/{package}.k8sVersion{name}={value}"
        for package in ("chartutil", "lint/rules")
        for name, value in (("Major", major), ("Minor", minor))
    ]
    return " ".join(flags)


def _go(module: Path, *arguments: str) -> str:
    # No cgo: the programs then need neither a C compiler to be built nor this machine's libraries to run.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    done = subprocess.run(
        [*nice, "go", *arguments], cwd=module, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"go {arguments[0]} in {module} failed (exit status {done.returncode}); its output is above")
    return done.stdout


def _put(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(source.read_bytes())
    temporary.replace(target)


def _put_folder(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # Go's modules are read-only, and so would be the copies.
        shutil.copytree(source, temporary, copy_function=shutil.copyfile)
        for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two builds at a time would compile everything twice: the second waits and then finds it done."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Build, and say where everything is."""
    parser = argparse.ArgumentParser(prog="python -m slipway_local.kubernetes.build", description=__doc__)
    parser.parse_args()
    try:
        folder = build(_say)
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name in COMMANDS:
        _say(f"{name:<24} {binaries.find(name)}")
    _say(f"{'KubeRay definitions':<24} {folder / 'crds'}")
    _say(f"{'Kueue chart':<24} {folder / 'charts' / 'kueue'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
