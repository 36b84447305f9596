"""Which resource a user means by `tj`, `trainjobs`, `trainjob.slipway.dev`, `slipway` or any word: the server knows.

Aggregated discovery (KEP-3352) answers in two requests; an older server is asked group by group. Matching is pure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from slipway_cli.errors import AnswerError, UsageError
from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.resource import Json, Resource

_AGGREGATED = (
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,"
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
)


@dataclass(frozen=True)
class Discovered:
    """One served resource and the words that mean it."""

    resource: Resource
    singular: str
    short_names: tuple[str, ...]
    categories: tuple[str, ...]

    @property
    def label(self) -> str:
        """The singular with its group, as kubectl prints it before a name: `trainjob.slipway.dev`."""
        singular = self.singular or self.resource.kind.lower()
        return f"{singular}.{self.resource.group}" if self.resource.group else singular

    def answers_to(self, word: str) -> bool:
        """Whether this word, group and version after dots or not, means this resource."""
        name, _, suffix = word.lower().partition(".")
        own = (self.resource.plural, self.singular, self.resource.kind.lower(), *self.short_names)
        groups = ("", self.resource.group, f"{self.resource.version}.{self.resource.group}".rstrip("."))
        return name in own and suffix in groups


@dataclass(frozen=True)
class Reference:
    """Objects that the command line names: of one resource, by these names, or all of them when there is none."""

    kind: Discovered
    names: tuple[str, ...] = ()


async def discover(client: Client) -> list[Discovered]:
    """Everything that the server serves, each resource once, in its preferred version. Raises KubeError."""
    core, groups = await asyncio.gather(_aggregated(client, "/api"), _aggregated(client, "/apis"))
    return [*core, *groups]


async def _aggregated(client: Client, path: str) -> list[Discovered]:
    answer = orjson.loads(await client.raw("GET", path, accept=_AGGREGATED))
    if answer.get("kind") == "APIGroupDiscoveryList":
        return [found for group in answer.get("items") or [] for found in _of_group(group)]
    if path == "/api":
        versions = list(answer.get("versions") or ["v1"])[:1]
    else:
        versions = [
            (group.get("preferredVersion") or group["versions"][0])["groupVersion"]
            for group in answer.get("groups") or []
        ]
    lists = await asyncio.gather(*(_plain(client, version) for version in versions))
    return [found for items in lists for found in items]


def _of_group(group: Json) -> Iterable[Discovered]:
    seen: set[str] = set()
    name = str((group.get("metadata") or {}).get("name") or "")
    for version in group.get("versions") or []:  # the preferred one is the first
        for item in version.get("resources") or []:
            plural = str(item["resource"])
            if plural in seen or "list" not in (item.get("verbs") or []):
                continue
            seen.add(plural)
            yield _discovered(
                name,
                str(version["version"]),
                plural,
                str((item.get("responseKind") or {}).get("kind") or ""),
                item.get("scope") == "Namespaced",
                item,
                str(item.get("singularResource") or ""),
            )


async def _plain(client: Client, group_version: str) -> list[Discovered]:
    group, _, version = group_version.rpartition("/")
    try:
        items = await client.discover(group_version)
    except NotFound:
        return []  # its API server is down, or it went away just now
    return [
        _discovered(
            group,
            version,
            str(item["name"]),
            str(item["kind"]),
            bool(item.get("namespaced")),
            item,
            str(item.get("singularName") or ""),
        )
        for item in items
        if "/" not in item["name"] and "list" in (item.get("verbs") or [])
    ]


def _discovered(
    group: str, version: str, plural: str, kind: str, namespaced: bool, item: dict[str, Any], singular: str
) -> Discovered:
    return Discovered(
        Resource(group, version, plural, kind, namespaced),
        singular or kind.lower(),
        tuple(item.get("shortNames") or ()),
        tuple(item.get("categories") or ()),
    )


# --- what the command line means ----------------------------------------------------------------------------------


def find_kinds(word: str, known: Sequence[Discovered]) -> list[Discovered]:
    """The resources that a word means: one, or all of a category. Raises AnswerError when there is none."""
    for candidate in known:
        if candidate.answers_to(word):
            return [candidate]
    members = [candidate for candidate in known if word.lower() in candidate.categories]
    if members:
        return members
    raise AnswerError(f"the server serves no resource {word!r}", hint=_hint_for_missing(word))


def _hint_for_missing(word: str) -> str:
    ours = word.lower().partition(".")[0] in ("tj", "trainjob", "trainjobs", "slipway")
    # Without our CRDs it is the right cluster without Slipway, or the wrong cluster.
    return (
        "slipway crds | kubectl apply --server-side -f -   (or name another --context)"
        if ours
        else "kubectl api-resources"
    )


def kind_of(obj: Json, known: Sequence[Discovered]) -> Discovered | None:
    """The resource of a manifest's apiVersion and kind; None where it is not served."""
    return next(
        (k for k in known if (k.resource.api_version, k.resource.kind) == (obj.get("apiVersion"), obj.get("kind"))),
        None,
    )


def parse_references(words: Sequence[str], known: Sequence[Discovered], *, names_required: bool) -> list[Reference]:
    """What `TYPE/NAME ...`, `TYPE NAME ...` or `TYPE[,TYPE...]` name.

    Raises UsageError for a mixture, or where a name is required and missing.
    """
    if any("/" in word for word in words):
        references = [_slashed(word, known) for word in words]
    else:
        kinds = [kind for word in words[0].split(",") if word for kind in find_kinds(word, known)]
        if not kinds:
            raise UsageError(f"{words[0]!r} is not a resource type")
        references = [Reference(kind, tuple(words[1:])) for kind in kinds]
    if any(name in (".", "..") for reference in references for name in reference.names):
        raise UsageError("'.' and '..' are no names")
    if names_required and not all(reference.names for reference in references):
        raise UsageError(f"{words[0]}: a name is missing", hint=f"{words[0]}/NAME")
    return references


def _slashed(word: str, known: Sequence[Discovered]) -> Reference:
    type_, _, name = word.partition("/")
    if not type_ or not name or "/" in name or "," in type_:
        raise UsageError(f"{word!r} is not TYPE/NAME", hint="tj/NAME; do not mix it with TYPE NAME")
    kinds = find_kinds(type_, known)
    if len(kinds) > 1:
        raise UsageError(f"{type_!r} is a category; name one type", hint=f"{kinds[0].resource.plural}/{name}")
    return Reference(kinds[0], (name,))
