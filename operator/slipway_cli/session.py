"""One command's connection: the target, a client, what the server serves, and its refusals put into words.

Every KubeError that a command does not handle itself becomes an AnswerError or a TargetError here, with what to type.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import orjson

from slipway_cli.errors import AnswerError, CliError, TargetError
from slipway_cli.resources import Discovered, Reference, discover, parse_references
from slipway_cli.target import Choice, Target, find_target
from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import (
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    TooManyRequests,
    Transient,
    Unauthorized,
)
from slipway_operator.kube.resource import Json, Resource

T = TypeVar("T")

EVENTS = Resource("", "v1", "events", "Event")
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@dataclass
class Session:
    """What a command works with."""

    target: Target
    client: Client
    _known: list[Discovered] = field(default_factory=list)

    async def known(self, *, refresh: bool = False) -> list[Discovered]:
        """What the server serves, asked once."""
        if refresh or not self._known:
            self._known = await discover(self.client)
        return self._known

    async def references(self, words: Sequence[str], *, names_required: bool = True) -> list[Reference]:
        """What these words of the command line name."""
        return parse_references(words, await self.known(), names_required=names_required)

    async def one(self, words: Sequence[str]) -> tuple[Discovered, str]:
        """The one object that the words name."""
        reference = (await self.references(words))[0]
        return reference.kind, reference.names[0]

    def scope(self, resource: Resource, *, all_namespaces: bool = False) -> str | None:
        """The namespace to ask about; None for a cluster-scoped resource or for all of them."""
        return self.target.namespace if resource.namespaced and not all_namespaces else None

    async def get(self, kind: Discovered, name: str) -> Json:
        """One object. Raises NotFound."""
        return await self.client.get(kind.resource, self.scope(kind.resource), name)

    async def table(
        self,
        kind: Discovered,
        name: str | None = None,
        *,
        all_namespaces: bool = False,
        query: Mapping[str, str] | None = None,
    ) -> Json:
        """One object, or all of them page by page, as the server's Table."""
        path = kind.resource.path(self.scope(kind.resource, all_namespaces=all_namespaces), name)
        asked = {} if name else {"limit": "500", **(query or {})}
        whole: Json = {}
        while True:
            page = orjson.loads(await self.client.raw("GET", path, query=asked, accept=_TABLE))
            if page.get("kind") != "Table":
                raise AnswerError(f"the server gives no table of {kind.resource.label}", hint="-o yaml")
            if whole:
                whole["rows"] += page.get("rows") or []
            else:
                whole = page
                whole["rows"] = page.get("rows") or []
                whole["version"] = (page.get("metadata") or {}).get("resourceVersion") or ""
            following = (page.get("metadata") or {}).get("continue")
            if not following:
                return whole
            asked = {**asked, "continue": following}

    async def events_of(self, obj: Json) -> list[Json]:
        """The Events about an object; none where they may not be read."""
        metadata = obj.get("metadata") or {}
        selector = f"involvedObject.uid={metadata.get('uid')}"
        namespace = metadata.get("namespace") or "default"
        try:
            return (await self.client.list(EVENTS, namespace, field_selector=selector))[0]
        except (NotFound, Forbidden):
            return []


@asynccontextmanager
async def open_session(choice: Choice, environment: Mapping[str, str]) -> AsyncIterator[Session]:
    """A session with the target that the command line means; a KubeError inside leaves as a CliError."""
    target = await find_target(choice, environment)
    async with Client(target.connection, user_agent="slipway-cli") as client:
        try:
            yield Session(target, client)
        except KubeError as error:
            raise explain(error, target) from error
        except CliError as error:
            error.details = (*error.details, f"target: {target}")
            raise


def run(choice: Choice, environment: Mapping[str, str], command: Callable[[Session], Awaitable[T]]) -> T:
    """Runs an async command in a session of its own."""

    async def main() -> T:
        async with open_session(choice, environment) as session:
            return await command(session)

    return asyncio.run(main())


def explain(error: KubeError, target: Target) -> CliError:
    """The error in words for the user: what is wrong, at which target, what to type."""
    where = (f"target: {target}",)
    if isinstance(error, Transient) and error.status == 0:
        hint = "slipway status; slipway up" if target.local_state else "kubectl cluster-info"
        return TargetError(f"the API server does not answer: {error.message}", details=where, hint=hint)
    message, hint = _words(error)
    return AnswerError(message, details=where, hint=hint)


def _words(error: KubeError) -> tuple[str, str]:
    if isinstance(error, NotFound):
        if "could not find the requested resource" in error.message or "page not found" in error.message:
            return "the server does not serve this resource", "kubectl api-resources"
        return error.message, "slipway get TYPE   lists what there is (-A: in all namespaces)"
    if isinstance(error, Unauthorized):
        return f"the server did not accept the credentials: {error.message}", "log in again, or name another --context"
    table: tuple[tuple[type[KubeError], str], ...] = (
        (Forbidden, "kubectl auth can-i --list"),
        (Invalid, "slipway validate -f FILE   checks a manifest before it is sent"),
        (Conflict, "slipway get TYPE/NAME -o yaml   shows who owns what now"),
        (Expired, "try again"),
        (TooManyRequests, "try again in a moment: the server sheds load"),
        (Transient, "try again in a moment"),
    )
    return error.message, next((hint for kind, hint in table if isinstance(error, kind)), "")
