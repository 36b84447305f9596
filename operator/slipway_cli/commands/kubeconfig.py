"""`slipway kubeconfig`: where the local control plane's kubeconfig is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from slipway_cli.errors import TargetError
from slipway_local.layout import Layout, default_state_dir


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints the path. Raises TargetError where there is none."""
    path = Layout(default_state_dir(environment)).kubeconfig
    if not path.is_file():
        raise TargetError(f"there is no {path}: the local control plane was never started", hint="slipway up")
    print(path)
    return 0
