"""`slipway describe`: everything about an object, with its events."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from slipway_cli import describe, session
from slipway_cli.options import choice_of
from slipway_cli.session import Session


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints the descriptions."""

    async def command(opened: Session) -> int:
        objects = []
        for reference in await opened.references(arguments.what, names_required=False):
            objects += [await opened.get(reference.kind, name) for name in reference.names]
            if not reference.names:
                resource = reference.kind.resource
                objects += (await opened.client.list(resource, opened.scope(resource)))[0]
        texts = [describe.describe(obj, await opened.events_of(obj), datetime.now(UTC)) for obj in objects]
        sys.stdout.write("\n\n".join(texts))
        if not texts:
            print(f"No resources found in namespace {opened.target.namespace}.", file=sys.stderr)
        return 0

    return session.run(choice_of(arguments), environment, command)
