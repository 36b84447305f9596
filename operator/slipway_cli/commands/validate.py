"""`slipway validate`: checks manifests with the API's own schema and rules; needs no server."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from slipway_cli.manifests import read_manifests
from slipway_cli.validation import check, is_ours, raise_for


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Raises ManifestError when a manifest is wrong."""
    manifests = read_manifests(arguments.files)
    raise_for(check(manifests))
    for manifest in manifests:
        print(f"{manifest}: {'valid' if is_ours(manifest) else 'not checked: only kinds of slipway.dev are'}")
    return 0
