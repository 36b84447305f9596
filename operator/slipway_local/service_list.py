"""The RayServices of the local control plane as `slipway status` shows them. Reads; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from slipway_local.layout import Layout
from slipway_local.ray_runner.service import URL_ANNOTATION
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import ConfigError, KubeError
from slipway_operator.kube.resource import RAYSERVICES, Json, key_of


@dataclass(frozen=True, slots=True)
class LocalService:
    """One of them. `url` is "" while nobody has deployed it, `problem` what Ready says when it is not True."""

    name: str
    ready: bool
    url: str
    problem: str


async def list_services(layout: Layout) -> tuple[LocalService, ...]:
    """All of them, by name; none when the API server does not answer."""
    if not layout.kubeconfig.exists():
        return ()
    try:
        async with Client(await load_config(str(layout.kubeconfig)), attempts=1, request_timeout=5.0) as client:
            found, _ = await client.list(RAYSERVICES)
    except (KubeError, ConfigError):
        return ()
    return tuple(_service(obj) for obj in sorted(found, key=key_of))


def _service(obj: Json) -> LocalService:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    ready: Json = next((one for one in conditions if one.get("type") == "Ready"), {})
    well = ready.get("status") == "True"
    return LocalService(
        name=str(key_of(obj)),
        ready=well,
        url=str((obj["metadata"].get("annotations") or {}).get(URL_ANNOTATION) or ""),
        problem="" if well else str(ready.get("message") or "not looked at yet"),
    )
