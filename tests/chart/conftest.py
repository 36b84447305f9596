"""The chart as Helm renders it, for each of the value sets in values/."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/slipway"
VALUE_SETS = sorted(path.stem for path in (Path(__file__).parent / "values").glob("*.yaml"))
RELEASE, NAMESPACE = "slipway", "slipway-system"

Helm = Callable[..., subprocess.CompletedProcess[str]]
Objects = list[dict[str, Any]]


def _helm() -> str | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slipway/control-plane"
    built = sorted(cache.glob("*/bin/helm"), key=lambda path: path.stat().st_mtime)
    return str(built[-1]) if built else shutil.which("helm")


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Runs helm; what it says about a failure is the caller's to judge."""
    binary = _helm()
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("the chart was not tested: there is no helm; `make control-plane` builds it")
        pytest.skip("there is no helm: `make control-plane` builds it")

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
def rendered(helm: Helm) -> Callable[[str], Objects]:
    """The objects of a value set, hooks included, as `helm template` gives them."""
    known: dict[str, Objects] = {}

    def render(value_set: str) -> Objects:
        if value_set not in known:
            values = Path(__file__).parent / f"values/{value_set}.yaml"
            result = helm("template", RELEASE, CHART, "--namespace", NAMESPACE, "--values", values)
            assert result.returncode == 0, result.stderr
            known[value_set] = [obj for obj in yaml.safe_load_all(result.stdout) if obj]
        return known[value_set]

    return render


@pytest.fixture(params=VALUE_SETS)
def objects(request: pytest.FixtureRequest, rendered: Callable[[str], Objects]) -> Objects:
    """The objects of each value set in turn."""
    return rendered(request.param)
