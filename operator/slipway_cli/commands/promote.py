"""`slipway promote`: lets the candidate of a Deployment take over now."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from slipway_cli import rollout


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Name the candidate in an annotation; the operator does the rest."""
    return rollout.annotate("promote", rollout.PROMOTE, arguments, environment)
