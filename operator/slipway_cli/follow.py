"""Follows objects through every hiccup: list, watch, resume; relist after 410; wait out an API server that is away.

Level-triggered: a consumer sees the newest state, perhaps not every state in between. It never gives up by itself; the
consumer has the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import Expired, Transient, error_from_status
from slipway_operator.kube.resource import Json, Resource, key_of, uid_of, version_of

_WATCH_SECONDS = 300.0
_INACTIVITY_SECONDS = 75.0  # API servers send a bookmark about once a minute
_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Change:
    """Something about one object: it is there (in this state), it is gone, or the server does not answer now."""

    type: Literal["state", "deleted", "away"]
    obj: Json | None = None
    message: str = ""


async def follow(
    client: Client,
    resource: Resource,
    namespace: str | None,
    *,
    name: str | None = None,
    label_selector: str | None = None,
    resource_version: str = "",
) -> AsyncGenerator[Change, None]:
    """Yields changes for ever. With a `name`, an object that is not there yields one `deleted` at once.

    Without `resource_version` it begins with the state of every object; with one, with what happened after it.
    Raises KubeError only for what waiting cannot mend (forbidden, not served).
    """
    selector = f"metadata.name={name}" if name else None
    seen: dict[tuple[str, str], Json] = {}
    version = resource_version
    while True:
        try:
            if not version:
                items, version = await client.list(resource, namespace, label_selector, selector)
                for change in _difference(seen, items, announce_absence=name is not None):
                    yield change
            stream = client.watch(
                resource,
                namespace,
                version,
                timeout_seconds=_WATCH_SECONDS,
                inactivity_timeout=_INACTIVITY_SECONDS,
                label_selector=label_selector,
                field_selector=selector,
            )
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    obj = event["object"]
                    if event["type"] == "ERROR":
                        raise error_from_status(int(obj.get("code") or 500), obj)
                    version = version_of(obj) or version
                    if event["type"] == "DELETED":
                        seen.pop(key_of(obj), None)
                        yield Change("deleted", obj)
                    elif event["type"] in ("ADDED", "MODIFIED"):
                        seen[key_of(obj)] = obj
                        yield Change("state", obj)
        except Expired:
            version = ""
        except Transient as error:
            yield Change("away", message=error.message)
            await asyncio.sleep(max(_RETRY_SECONDS, error.retry_after))


def _difference(seen: dict[tuple[str, str], Json], items: list[Json], *, announce_absence: bool) -> list[Change]:
    """What a new list says that was not known, by UID, so that a deleted and recreated object is not one object."""
    changes: list[Change] = []
    fresh = {key_of(item): item for item in items}
    for key, old in list(seen.items()):
        if key not in fresh or uid_of(fresh[key]) != uid_of(old):
            changes.append(Change("deleted", seen.pop(key)))
    for key, item in fresh.items():
        if key not in seen or version_of(seen[key]) != version_of(item):
            seen[key] = item
            changes.append(Change("state", item))
    if announce_absence and not items and not changes:
        changes.append(Change("deleted"))
    return changes
