"""`slipway patch`: changes some fields of an object by a JSON merge patch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from slipway_cli import session
from slipway_cli.errors import UsageError
from slipway_cli.options import choice_of
from slipway_cli.session import Session


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Patches each object; says whether that changed anything."""
    import yaml  # noqa: PLC0415

    try:
        patch = yaml.safe_load(arguments.patch)
    except yaml.YAMLError as error:
        raise UsageError(f"-p is neither JSON nor YAML: {error}") from error
    if not isinstance(patch, dict):
        raise UsageError("-p must be an object", hint='-p \'{"spec": {"suspend": true}}\'')

    async def command(opened: Session) -> int:
        for reference in await opened.references(arguments.what):
            resource = reference.kind.resource
            namespace = opened.scope(resource)
            for name in reference.names:
                before = await opened.get(reference.kind, name)
                after = await opened.client.merge_patch(resource, namespace, name, patch)
                changed = before["metadata"]["resourceVersion"] != after["metadata"]["resourceVersion"]
                print(f"{reference.kind.label}/{name} patched{'' if changed else ' (no change)'}")
        return 0

    return session.run(choice_of(arguments), environment, command)
