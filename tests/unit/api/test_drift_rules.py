"""Drift and capture belong together, and a manifest that says otherwise is refused by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slipway_cli.manifests import read_manifests
from slipway_cli.validation import check


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"drift": {}}, ""),
        ({"drift": {"windowRequests": 50}, "capture": {"content": "examples"}}, ""),
        ({"drift": {}, "capture": {"content": "none"}}, "drift needs captured requests"),
        ({"capture": {"content": "examples"}}, "examples are only kept while drift is watched"),
        ({"drift": {"windowRequests": 49}}, "windowRequests"),
        ({"drift": {"reference": {"sources": []}}}, "sources"),
    ],
)
def test_what_belongs_together(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    spec = {"model": {"uri": "/model"}, **changes}
    manifest = {"apiVersion": "slipway.dev/v1alpha1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": spec}
    (tmp_path / "x.yaml").write_text(json.dumps(manifest))
    problems = " ".join(str(problem) for problem in check(read_manifests([str(tmp_path / "x.yaml")])))
    assert words in problems
    assert bool(problems) == bool(words)
