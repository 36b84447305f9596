"""Which API server a command talks to, found like kubectl finds it, and said in words for every message.

In this order: --kubeconfig; $KUBECONFIG; with --context, ~/.kube/config; the local control plane, if it is up; the
pod's service account; ~/.kube/config. This file reads kubeconfigs and asks one question (`/version`) of the local
control plane; it starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from slipway_cli.errors import TargetError
from slipway_local.layout import Layout, default_state_dir
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import ConnectionConfig, load_config
from slipway_operator.kube.errors import ConfigError, KubeError

_PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class Choice:
    """What the command line says about the target."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


@dataclass(frozen=True)
class Target:
    """One API server and the namespace that is meant when none is named."""

    connection: ConnectionConfig
    origin: str  # where it was found, in words
    namespace: str
    namespace_named: bool  # by -n, not by the kubeconfig
    local_state: Path | None  # the local control plane's folder, when this is the local control plane

    def __str__(self) -> str:
        return f"{self.origin}, {self.connection.server}, namespace {self.namespace}"


async def find_target(choice: Choice, environment: Mapping[str, str]) -> Target:
    """The target of a command. Raises TargetError saying what was looked at and what to type."""
    state = default_state_dir(environment)
    if choice.kubeconfig or environment.get("KUBECONFIG"):
        named = choice.kubeconfig or environment["KUBECONFIG"]
        how = "--kubeconfig" if choice.kubeconfig else "$KUBECONFIG"
        return await _load(choice, named, f"{named} ({how})", state)
    home = str(Path.home() / ".kube" / "config")
    if choice.context:
        return await _load(choice, home, f"context {choice.context} of {home}", state)
    local = Layout(state).kubeconfig
    refusal = f"the local control plane is not up (no {local})"
    if local.is_file():
        target = await _load(choice, str(local), f"the local control plane in {state}", state)
        refusal = await _refusal(target)
        if not refusal:
            return target
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return await _load(choice, None, "the pod's service account", state)
    if Path(home).is_file():
        return await _load(choice, home, home, state)
    raise TargetError(
        "there is nothing to talk to",
        details=("nothing is named by --kubeconfig, --context or $KUBECONFIG", refusal, f"there is no {home}"),
        hint="slipway up",
    )


async def _load(choice: Choice, kubeconfig: str | None, origin: str, state: Path) -> Target:
    try:
        connection = await load_config(kubeconfig, choice.context)
    except ConfigError as error:
        raise TargetError(
            str(error), details=(f"target: {origin}",), hint="slipway get tj --kubeconfig FILE"
        ) from error
    if choice.context and f"context {choice.context}" not in origin:
        origin = f"context {choice.context} of {origin}"
    return Target(
        connection=connection,
        origin=origin,
        namespace=choice.namespace or connection.namespace,
        namespace_named=choice.namespace is not None,
        local_state=state if connection.server == _server_in(Layout(state).kubeconfig) else None,
    )


async def _refusal(target: Target) -> str:
    """Why the local control plane does not serve us; "" when it does."""
    try:
        async with Client(target.connection, request_timeout=_PROBE_SECONDS, attempts=1) as client:
            await client.raw("GET", "/version")
    except KubeError as error:
        return f"{target.origin} does not answer at {target.connection.server} ({error.message})"
    return ""


def _server_in(kubeconfig: Path) -> str | None:
    """The server that the local control plane's kubeconfig names; None where there is none."""
    try:
        document = yaml.safe_load(kubeconfig.read_text())
        return str(document["clusters"][0]["cluster"]["server"]).rstrip("/")
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return None
