"""Writes the children of an object: applies, creates, patches and deletes them, and remembers what was written.

Every write names what it expects (UID, resourceVersion), so that a stale cache costs a retry and never a wrong delete
or a lost record.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from slipway_operator.controllers.runs.observed import Patch
from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import AlreadyExists, Conflict, NotFound
from slipway_operator.kube.expectations import Expectations
from slipway_operator.kube.resource import (
    EVALJOBS,
    NETWORKPOLICIES,
    RAYJOBS,
    RAYSERVICES,
    SECRETS,
    TRAINJOBS,
    Key,
    Resource,
    key_of,
    uid_of,
    version_of,
)

FIELD_MANAGER = "slipway-operator"
# A RayJob is created and never applied again: once it exists, Kueue drives its `suspend` and its pod templates, and an
# apply after a lost answer would take them back. One that exists already is adopted when the cache shows it. The same
# holds for jobs, whose names users may have taken.
_CREATED = (RAYJOBS, TRAINJOBS, EVALJOBS)
_RESOURCES = {r.kind: r for r in (RAYJOBS, RAYSERVICES, SECRETS, TRAINJOBS, EVALJOBS, NETWORKPOLICIES)}


class Children:
    """The children of one kind of object. `cached`: those whose writes a cache shows, so that it is waited for."""

    def __init__(self, client: Client, expectations: Expectations, cached: Collection[Resource]) -> None:
        self._client = client
        self._expectations = expectations
        self._cached = cached

    async def apply(self, key: Key, child: dict[str, Any]) -> None:
        """Make it what it should be. Raises Conflict where one that is created exists already."""
        resource = _RESOURCES[child["kind"]]
        if resource in _CREATED:
            try:
                written = await self._client.create(resource, child)
            except AlreadyExists as error:
                raise Conflict(error.status, error.reason, error.message) from error
        else:
            written = await self._client.apply(resource, child, field_manager=FIELD_MANAGER)
        if resource in self._cached:
            self._expectations.wrote(key, resource, written)

    async def patch(self, key: Key, patch: Patch) -> None:
        """Change some fields of what was observed, if it is still that."""
        resource = _RESOURCES[patch.obj["kind"]]
        namespace, name = key_of(patch.obj)
        version = version_of(patch.obj)
        written = await self._client.merge_patch(resource, namespace, name, patch.body, resource_version=version)
        self._expectations.wrote(key, resource, written)

    async def delete(self, key: Key, obj: dict[str, Any]) -> None:
        """Delete this very object; one that is gone is fine."""
        resource = _RESOURCES[obj["kind"]]
        namespace, name = key_of(obj)
        try:
            await self._client.delete(resource, namespace, name, uid=uid_of(obj) or None)
        except NotFound:
            return
        if resource in self._cached:
            self._expectations.deleted(key, resource, obj)
