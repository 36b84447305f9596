"""`slipway abort`: rolls the candidate of a Deployment back now."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from slipway_cli import rollout


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Name the candidate in an annotation; the operator does the rest."""
    return rollout.annotate("abort", rollout.ABORT, arguments, environment)
