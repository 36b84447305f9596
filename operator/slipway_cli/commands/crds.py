"""`slipway crds`: the CustomResourceDefinitions, as YAML to apply to a cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from slipway_api.crd import crds
from slipway_cli.output import to_yaml


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints every definition, as one stream of documents."""
    sys.stdout.write("---\n".join(to_yaml(definition) for definition in crds()))
    return 0
