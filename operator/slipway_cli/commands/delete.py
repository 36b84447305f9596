"""`slipway delete`: deletes objects and, unless told otherwise, waits until they and what they ran are gone."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from dataclasses import replace

from slipway_cli import session
from slipway_cli.commands.wait import wait_for
from slipway_cli.durations import parse_duration
from slipway_cli.errors import AnswerError, UsageError
from slipway_cli.manifests import Manifest, read_manifests
from slipway_cli.options import choice_of
from slipway_cli.resources import Discovered, kind_of
from slipway_cli.session import Session
from slipway_cli.waiting import Deletion
from slipway_operator.kube.errors import NotFound

Victim = tuple[Discovered, str, str | None]  # kind, name, namespace


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Deletes everything that was named; raises AnswerError when something named does not exist."""
    seconds = parse_duration(arguments.timeout)
    if bool(arguments.what) == bool(arguments.files):
        raise UsageError(
            "name objects, or a file that names them", hint="slipway delete tj/NAME, slipway delete -f FILE"
        )
    manifests = read_manifests(arguments.files) if arguments.files else []

    async def command(opened: Session) -> int:
        victims = await _victims(opened, arguments, manifests)
        missing, doomed = [], []
        for kind, name, namespace in victims:
            try:
                # Foreground: the object is gone only when what it ran is gone.
                await opened.client.delete(kind.resource, namespace, name, propagation="Foreground")
            except NotFound as error:
                missing.append(error.message)
                continue
            doomed.append((kind, name, namespace))
            if arguments.wait == "false":
                print(f'{kind.label} "{name}" deleted (its run is being stopped)', flush=True)
        if arguments.wait == "true":
            await _wait(opened, doomed, seconds)
        if missing and not arguments.ignore_not_found:
            raise AnswerError("; ".join(missing), hint="slipway get TYPE   lists what there is")
        return 0

    return session.run(choice_of(arguments), environment, command)


async def _victims(opened: Session, arguments: argparse.Namespace, manifests: list[Manifest]) -> list[Victim]:
    if manifests:
        return [await _victim(opened, manifest) for manifest in reversed(manifests)]
    victims: list[Victim] = []
    for reference in await opened.references(arguments.what, names_required=not arguments.all):
        namespace = opened.scope(reference.kind.resource)
        names = list(reference.names)
        if arguments.all:
            if names:
                raise UsageError("--all does not go with a name")
            items, _ = await opened.client.list(reference.kind.resource, namespace)
            names = [item["metadata"]["name"] for item in items]
        victims += [(reference.kind, name, namespace) for name in names]
    return victims


async def _victim(opened: Session, manifest: Manifest) -> Victim:
    kind = kind_of(manifest.obj, await opened.known())
    if kind is None:
        raise AnswerError(f"{manifest}: the server serves no {manifest.obj['apiVersion']} {manifest.obj['kind']}")
    if not kind.resource.namespaced:
        return kind, manifest.name, None
    return kind, manifest.name, str(manifest.obj["metadata"].get("namespace") or opened.target.namespace)


async def _wait(opened: Session, doomed: list[Victim], seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    for kind, name, namespace in doomed:
        there = Session(replace(opened.target, namespace=namespace or opened.target.namespace), opened.client)
        await wait_for(there, kind, name, Deletion(), deadline=deadline, seconds=seconds, quiet=True)
        print(f'{kind.label} "{name}" deleted', flush=True)
