"""The chart as Helm renders it, for each of the value sets in values/, and a real API server to try it on."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_local.kubernetes.binaries import MissingBinaryError, find, missing
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_local.kubernetes.programs import Options

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/slipway"
VALUE_SETS = sorted(path.stem for path in (Path(__file__).parent / "values").glob("*.yaml"))
RELEASE, NAMESPACE = "slipway", "slipway-system"

Helm = Callable[..., subprocess.CompletedProcess[str]]
Objects = list[dict[str, Any]]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Runs Helm 4; what it says about a failure is the caller's to judge."""
    return _runner("helm")


@pytest.fixture(scope="session")
def helm3() -> Helm:
    """Runs Helm 3."""
    return _runner("helm3")


def _runner(name: str) -> Helm:
    try:
        binary = str(find(name))
    except MissingBinaryError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the chart was not tested: {error}")
        pytest.skip(f"the chart was not tested: {error}")

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [binary, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture(scope="session")
def manifest(helm: Helm) -> Callable[[str], str]:
    """The text of a value set, hooks included, as `helm template` gives it."""

    @functools.cache
    def render(value_set: str) -> str:
        values = Path(__file__).parent / f"values/{value_set}.yaml"
        result = helm("template", RELEASE, CHART, "--namespace", NAMESPACE, "--values", values)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return render


@pytest.fixture(scope="session")
def rendered(manifest: Callable[[str], str]) -> Callable[[str], Objects]:
    """The objects in that text."""
    return functools.cache(lambda value_set: [obj for obj in yaml.safe_load_all(manifest(value_set)) if obj])


@pytest.fixture(params=VALUE_SETS)
def objects(request: pytest.FixtureRequest, rendered: Callable[[str], Objects]) -> Objects:
    """The objects of each value set in turn."""
    return rendered(request.param)


# --- a real API server --------------------------------------------------------------------------------------------


class Cluster:
    """kubectl and helm against a control plane without nodes."""

    def __init__(self, control_plane: ControlPlane, helm: Helm) -> None:
        self.control_plane = control_plane
        self._helm = helm
        self._kubectl = str(find("kubectl"))

    def kubectl(
        self, *arguments: str | Path, manifest: Any = None, kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Whatever comes of it. `manifest`: an object, a list of objects or YAML, as standard input."""
        if isinstance(manifest, list):
            manifest = {"apiVersion": "v1", "kind": "List", "items": manifest}
        return subprocess.run(
            [self._kubectl, "--kubeconfig", str(kubeconfig or self.control_plane.kubeconfig), *map(str, arguments)],
            input=manifest if manifest is None or isinstance(manifest, str) else json.dumps(manifest),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def done(self, *arguments: str | Path, manifest: Any = None, kubeconfig: Path | None = None) -> str:
        """The output of a kubectl that must succeed."""
        result = self.kubectl(*arguments, manifest=manifest, kubeconfig=kubeconfig)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def get(self, kind: str, name: str, namespace: str | None = None) -> Any:
        """One object, or None."""
        where = ["-n", namespace] if namespace else []
        text = self.done("get", kind, name, *where, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text else None

    def helm(self, *arguments: str | Path, by: Helm | None = None) -> str:
        """The output of a helm that must succeed; `by`: another one than Helm 4."""
        result = (by or self._helm)(*arguments, "--namespace", NAMESPACE, KUBECONFIG=str(self.control_plane.kubeconfig))
        assert result.returncode == 0, result.stderr
        return result.stdout

    def until(self, check: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """What `check` returns, once that is something."""
        deadline = time.monotonic() + seconds
        while not (found := check()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def cluster(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A fresh one, with KubeRay's CRDs and without ours, and the namespaces that the value sets name."""
    absent = missing()
    if absent:
        reason = f"the chart was not tried on an API server: {'; '.join(absent.values())}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = Options(definitions=("ray",), unsafe_no_fsync=True, audit="all")
    with ControlPlane(tmp_path_factory.mktemp("cluster"), options) as control_plane:
        made = Cluster(control_plane, helm)
        restricted = {
            "pod-security.kubernetes.io/enforce": "restricted",
            "pod-security.kubernetes.io/warn": "restricted",
        }
        names = (NAMESPACE, "team-a", "team-b", "team-c")
        made.done(
            "apply",
            "-f",
            "-",
            manifest=[
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": restricted}}
                for name in names
            ],
        )
        yield made
