"""`slipway lineage`: the chain from data to the version that answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from slipway_cli import session
from slipway_cli.errors import UsageError
from slipway_cli.lineage.build import Builder
from slipway_cli.lineage.graph import Graph
from slipway_cli.lineage.render import FORMATS
from slipway_cli.options import choice_of
from slipway_cli.session import Session
from slipway_operator.kube.resource import EVALJOBS, TRAINJOBS


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints it in the form that -o names."""
    graph = session.run(choice_of(arguments), environment, lambda opened: _graph(opened, arguments.what))
    sys.stdout.write(FORMATS[arguments.output](graph))
    return 0


async def _graph(opened: Session, words: list[str]) -> Graph:
    kind, name = await opened.one(words)
    if kind.resource.group != "slipway.dev" or kind.resource.kind not in ("Deployment", "TrainJob"):
        hint = "slipway lineage sdeploy/NAME, or tj/NAME"
        raise UsageError(f"a lineage is of a Deployment or a TrainJob, not of a {kind.resource.kind}", hint=hint)
    found = await opened.get(kind, name)
    jobs = [(await opened.client.list(resource, opened.scope(resource)))[0] for resource in (TRAINJOBS, EVALJOBS)]
    builder = Builder(*jobs)
    return builder.of_train_job(name) if kind.resource.kind == "TrainJob" else builder.of_deployment(found)
