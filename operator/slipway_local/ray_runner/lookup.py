"""Reads from the API server what RayJobs refer to: Secrets, ConfigMaps and PriorityClasses. Keeps no Secret."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from slipway_local.ray_runner.errors import InvalidSpec, MissingReference
from slipway_local.ray_runner.pod import ObjectRef
from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.resource import CONFIGMAPS, PRIORITYCLASSES, SECRETS, Json

_KINDS = {"Secret": SECRETS, "ConfigMap": CONFIGMAPS}


class Lookup:
    """Questions to the API server."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def priority(self, named: tuple[str, str] | None) -> int:
        """The value of the PriorityClass (path, name); of the default one, or 0, when none is named.

        Raises InvalidSpec when it does not exist.
        """
        if named is None:
            classes, _ = await self._client.list(PRIORITYCLASSES)
            return max((int(item.get("value") or 0) for item in classes if item.get("globalDefault")), default=0)
        path, name = named
        try:
            return int((await self._client.get(PRIORITYCLASSES, None, name)).get("value") or 0)
        except NotFound:
            raise InvalidSpec(path, f"there is no PriorityClass {name!r}: create it, or name another") from None

    async def objects(self, namespace: str, wanted: Mapping[ObjectRef, bool]) -> dict[ObjectRef, dict[str, bytes]]:
        """The data of these objects; True marks those that may be missing. Raises MissingReference."""
        found: dict[ObjectRef, dict[str, bytes]] = {}
        for ref, optional in wanted.items():
            try:
                found[ref] = _data(ref, await self._client.get(_KINDS[ref.kind], namespace, ref.name))
            except NotFound:
                if not optional:
                    raise MissingReference(f"{ref} does not exist in namespace {namespace}") from None
        return found


def _data(ref: ObjectRef, obj: Json) -> dict[str, bytes]:
    texts: dict[str, str] = obj.get("data") or {}
    if ref.kind == "Secret":
        return {key: base64.b64decode(text) for key, text in texts.items()}
    binary: dict[str, str] = obj.get("binaryData") or {}
    return {key: text.encode() for key, text in texts.items()} | {
        key: base64.b64decode(text) for key, text in binary.items()
    }
