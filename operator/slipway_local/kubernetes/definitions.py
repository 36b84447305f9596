"""Installs the CustomResourceDefinitions that Slipway needs: its own, and KubeRay's.

KubeRay's come from the build (`binaries.ray_definitions`) and are sent as they are; where nothing was built, the small
ones of the embedded API server take their place: a control plane without KubeRay's operator gets along with them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from slipway_api.crd import crds
from slipway_local.apiserver.rayapi import ray_crds
from slipway_local.kubernetes.admin_client import AdminClient, AdminError

_ROOT = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_APPLY = "application/apply-patch+yaml"
_MANAGER = "slipway-local"
_POLL = 0.05

Owner = Literal["slipway", "ray"]


class NotServedError(Exception):
    """A definition was accepted and is not served. The message says why."""


def install(api: AdminClient, owners: Iterable[Owner], ray: list[Path], deadline: float) -> None:
    """Applies the definitions of these owners and returns when all are served. Raises AdminError, NotServedError.

    `ray` are KubeRay's own files, if there are any; `deadline` is a time.monotonic().
    """
    documents = {name: body for owner in owners for name, body in _documents(owner, ray).items()}

    def apply(name: str) -> None:
        api.send("PATCH", f"{_ROOT}/{name}?fieldManager={_MANAGER}&force=true", documents[name], _APPLY)

    # KubeRay's take the API server half a second each: all at once.
    with ThreadPoolExecutor() as pool:
        list(pool.map(apply, documents))
    for name in documents:
        while (why := _problem(api, name)) is not None:
            if time.monotonic() > deadline:
                raise NotServedError(f"{name} is not served: {why}")
            time.sleep(_POLL)


def _documents(owner: Owner, ray: list[Path]) -> dict[str, bytes]:
    if owner == "ray" and ray:
        # ray.io_rayjobs.yaml holds rayjobs.ray.io. Reading these megabytes of YAML here would take seconds.
        return {f"{path.stem.removeprefix('ray.io_')}.ray.io": path.read_bytes() for path in ray}
    made = crds() if owner == "slipway" else ray_crds()
    return {crd["metadata"]["name"]: json.dumps(crd).encode() for crd in made}


def _problem(api: AdminClient, name: str) -> str | None:
    try:
        found = api.json("GET", f"{_ROOT}/{name}")
    except AdminError as error:
        return str(error)
    conditions = {one["type"]: one for one in (found.get("status") or {}).get("conditions") or []}
    accepted = conditions.get("NamesAccepted", {})
    if accepted.get("status") == "False":
        return str(accepted.get("message"))
    return None if conditions.get("Established", {}).get("status") == "True" else "it is not established yet"
