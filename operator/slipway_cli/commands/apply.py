"""`slipway apply`: server-side apply of manifests, checked here first so that an error names the file and the field."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import orjson

from slipway_cli import session
from slipway_cli.errors import AnswerError, CliError, UsageError
from slipway_cli.manifests import Manifest, read_manifests
from slipway_cli.options import choice_of
from slipway_cli.resources import Discovered, kind_of
from slipway_cli.session import Session
from slipway_cli.validation import check, raise_for
from slipway_operator.kube.errors import KubeError, NotFound, Transient
from slipway_operator.kube.resource import Json

FIELD_MANAGER = "slipway-cli"
_SERVER_MADE = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Applies every manifest, in order; 1 when the server refused one. Nothing is sent when one is wrong."""
    manifests = read_manifests(arguments.files)
    _check(manifests, arguments.namespace or "default")

    async def command(opened: Session) -> int:
        failures: list[str] = []
        for manifest in manifests:
            try:
                kind, outcome = await _apply(opened, manifest, arguments)
            except (KubeError, CliError) as error:
                if isinstance(error, Transient) and error.status == 0:
                    raise  # the server is away: the next one would fail too
                failures.append(f"{manifest}: {_refusal(error)}")
            else:
                dry = " (dry run)" if arguments.dry_run else ""
                print(f"{kind.label}/{manifest.name} {outcome}{dry}", flush=True)
        if failures:
            refused = f"{len(failures)} of {len(manifests)} objects were" if len(manifests) > 1 else "the object was"
            raise AnswerError(f"{refused} refused", details=tuple(failures), hint=_hint(failures))
        return 0

    return session.run(choice_of(arguments), environment, command)


def _check(manifests: list[Manifest], namespace: str) -> None:
    try:
        problems = check(manifests, namespace)
    except CliError:
        return  # the extra [local] is not installed; the server checks the same rules
    raise_for(problems)


async def _apply(opened: Session, manifest: Manifest, arguments: argparse.Namespace) -> tuple[Discovered, str]:
    kind = kind_of(manifest.obj, await opened.known()) or kind_of(manifest.obj, await opened.known(refresh=True))
    if kind is None:
        wanted = f"{manifest.obj['apiVersion']} {manifest.obj['kind']}"
        raise AnswerError(f"the server serves no {wanted}: install its CustomResourceDefinition first (slipway crds)")
    obj, namespace = _placed(opened, manifest, kind)
    path = kind.resource.path(namespace, manifest.name)
    try:
        before: Json | None = orjson.loads(await opened.client.raw("GET", path))
    except NotFound:
        before = None
    query = {
        "fieldManager": FIELD_MANAGER,
        "fieldValidation": "Strict",
        "force": "true" if arguments.force_conflicts else "false",
    }
    answer = await opened.client.raw(
        "PATCH",
        path,
        query=query | ({"dryRun": "All"} if arguments.dry_run else {}),
        body=obj,
        content_type="application/apply-patch+yaml",
    )
    if before is None:
        return kind, "created"
    return kind, "unchanged" if _plain(before) == _plain(orjson.loads(answer)) else "configured"


def _placed(opened: Session, manifest: Manifest, kind: Discovered) -> tuple[Json, str | None]:
    """The object in the namespace where it goes, and that namespace."""
    metadata = dict(manifest.obj["metadata"])
    if not kind.resource.namespaced:
        return manifest.obj, None
    target = opened.target
    said = metadata.setdefault("namespace", target.namespace)
    if target.namespace_named and said != target.namespace:
        raise UsageError(f"metadata.namespace is {said}, but -n says {target.namespace}")
    return {**manifest.obj, "metadata": metadata}, str(said)


def _plain(obj: Json) -> Json:
    """The object as its writers see it, without what the server keeps about it."""
    metadata = {key: value for key, value in (obj.get("metadata") or {}).items() if key not in _SERVER_MADE}
    return {**obj, "metadata": metadata}


def _refusal(error: KubeError | CliError) -> str:
    return error.message


def _hint(failures: list[str]) -> str:
    text = " ".join(failures)
    if "immutable" in text:
        return "slipway delete TYPE/NAME, then apply again; what is stored stays"
    if "conflict" in text.lower():
        return "slipway apply --force-conflicts   takes the fields over"
    return ""
