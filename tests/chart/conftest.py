"""The chart as Helm renders it, for each of the value sets in values/."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_local.kubernetes.binaries import MissingBinaryError, find

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/slipway"
VALUE_SETS = sorted(path.stem for path in (Path(__file__).parent / "values").glob("*.yaml"))
RELEASE, NAMESPACE = "slipway", "slipway-system"

Helm = Callable[..., subprocess.CompletedProcess[str]]
Objects = list[dict[str, Any]]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Runs helm; what it says about a failure is the caller's to judge."""
    try:
        binary = str(find("helm"))
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
