"""Every example is a manifest that the CRD's own rules accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway_cli.manifests import read_manifests
from slipway_cli.validation import check

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").rglob("*.yaml"))


def test_there_are_examples_for_gpu_clusters() -> None:
    assert [path.name for path in EXAMPLES if path.parent.name == "gpu"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid(path: Path) -> None:
    manifests = read_manifests([str(path)])
    assert manifests
    assert [str(problem) for problem in check(manifests)] == []
