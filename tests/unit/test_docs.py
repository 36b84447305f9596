"""The docs keep up with the code: every reason is explained, every value of the chart is listed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway_api import conditions

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"PLANNED", "SUSPENDED", "RUNNING", "SUCCEEDED", "FAILED", "PASSED"}
TYPES |= {
    "GATE_PASSED",
    "AVAILABLE",
    "COMPRESSED",
    "PROGRESSING",
    "DEGRADED",
    "DRIFTED",
    "RETRAINING",
}  # a Deployment's
REASONS = {
    name: value
    for name, value in vars(conditions).items()
    if name.isupper() and isinstance(value, str) and name not in TYPES
}


@pytest.mark.parametrize("reason", sorted(REASONS.values()))
def test_every_reason_is_explained(reason: str) -> None:
    assert re.search(rf"(?m)^\| `{reason}` \|", (ROOT / "docs/troubleshooting.md").read_text())


def test_no_reason_is_explained_that_there_is_not() -> None:
    explained = re.findall(r"(?m)^\| `([A-Z]\w+)` \|", (ROOT / "docs/troubleshooting.md").read_text())
    assert len(explained) == len(set(explained))
    assert set(explained) == set(REASONS.values())


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        # What holds free keys, or is explained as a whole, is one entry.
        whole = path in ("resources", "reports.tls.issuerRef", "metrics.dashboard.labels")
        if isinstance(value, dict) and value and not whole:
            yield from leaves(value, f"{path}.")
        else:
            yield path


def test_every_value_of_the_chart_is_listed_and_no_other() -> None:
    values = yaml.safe_load((ROOT / "charts/slipway/values.yaml").read_text())
    section = (ROOT / "docs/install.md").read_text().partition("## Values")[2].partition("\n## ")[0]
    cells = re.findall(r"(?m)^\| (`[^|]*`) \|", section)
    assert sorted(name for cell in cells for name in re.findall(r"`([^`]+)`", cell)) == sorted(leaves(values))


def test_links_between_the_docs_lead_somewhere() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "images/README.md"]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
