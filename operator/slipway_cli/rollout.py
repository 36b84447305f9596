"""Ends a Deployment's rollout by hand: an annotation that names the candidate, so that it can mean no other one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from slipway_cli import endpoint, session
from slipway_cli.errors import UsageError
from slipway_cli.options import choice_of
from slipway_cli.session import Session

PROMOTE, ABORT = "slipway.dev/promote", "slipway.dev/abort"


def annotate(command: str, annotation: str, arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Put the annotation on the Deployment that the words name."""
    print(session.run(choice_of(arguments), environment, lambda s: _annotate(s, command, annotation, arguments.what)))
    return 0


async def _annotate(opened: Session, command: str, annotation: str, words: list[str]) -> str:
    deployment = await endpoint.deployment_of(opened, words, command)
    name = str(deployment["metadata"]["name"])
    candidate = (deployment.get("status") or {}).get("candidate")
    if not candidate:
        raise UsageError(f"sdeploy/{name} has no candidate: nothing is being rolled out", hint="slipway get sdeploy")
    kind, _ = await opened.one(words)
    version = str(candidate["version"])
    patch = {"metadata": {"annotations": {annotation: version}}}
    await opened.client.merge_patch(kind.resource, opened.scope(kind.resource), name, patch)
    return f"{kind.label}/{name}: {command} of version {version} asked for"
