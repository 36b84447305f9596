"""Reads serveConfigV2 of a RayService, and gives it a place beside those of others on one Ray. Pure.

In a cluster each RayService has a Ray of its own; here all of them share one, and Ray Serve's REST API takes one
configuration for everything. So the names of applications get a prefix, and their routes begin with
`/<namespace>/<name>`. Code that looks for a sibling by its name finds the prefix in the variable APPLICATION_PREFIX,
which is not set in a cluster.

Serve ignores fields that it does not know; here they are refused, because somebody means something by them. So is what
belongs to the one HTTP proxy, except where it listens, which in a cluster has no meaning outside of the pod either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml

from slipway_local.ray_runner.cluster import read_runtime_env
from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.reading import list_at, mapping_at, text_at
from slipway_local.ray_runner.resources import Resources

PATH = "spec.serveConfigV2"
APPLICATION_PREFIX = "SLIPWAY_SERVE_APPLICATION_PREFIX"
"""Variable of every replica: what stands before the names of its own RayService's applications."""

# Of Ray 2.60 (ray.serve.schema).
_DOCUMENT = {"applications", "proxy_location", "http_options", "grpc_options", "logging_config"}
_MOOT_HTTP = {"host", "port"}
_MOOT_GRPC = {"port"}  # without servicer functions there is no gRPC proxy
_APPLICATION = {
    "name",
    "route_prefix",
    "import_path",
    "runtime_env",
    "args",
    "deployments",
    "logging_config",
    "autoscaling_policy",
    "external_scaler_enabled",
}
_DEPLOYMENT = {
    "name",
    "num_replicas",
    "max_ongoing_requests",
    "max_queued_requests",
    "user_config",
    "autoscaling_config",
    "graceful_shutdown_wait_loop_s",
    "graceful_shutdown_timeout_s",
    "health_check_period_s",
    "health_check_timeout_s",
    "ray_actor_options",
    "logging_config",
    "request_router_config",
    "backpressure_config",
    "rolling_update_percentage",
    "max_surge_percent",
    "max_replicas_per_node",
}
_ACTOR = {"num_cpus", "num_gpus", "memory", "runtime_env"}


@dataclass(frozen=True)
class ServeConfig:
    """The applications as Serve takes them, under their own names, and what their listed deployments need at most."""

    applications: tuple[dict[str, Any], ...]
    need: Resources = field(default_factory=Resources)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the applications."""
        return tuple(str(application["name"]) for application in self.applications)


def read_serve_config(text: str) -> ServeConfig:
    """What serveConfigV2 says. Raises InvalidSpec naming the field."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidSpec(PATH, f"is not YAML: {' '.join(str(error).split())}") from None
    try:
        document = json.loads(json.dumps(document, allow_nan=False))
    except (TypeError, ValueError) as error:  # a date, for example
        raise InvalidSpec(PATH, f"has a value that JSON cannot express: {error}") from None
    if not isinstance(document, dict):
        raise InvalidSpec(PATH, "is required: a YAML mapping with a list `applications`")
    _known(document, PATH, _DOCUMENT)
    _known(mapping_at(document, "http_options", PATH), f"{PATH}.http_options", _MOOT_HTTP)
    _known(mapping_at(document, "grpc_options", PATH), f"{PATH}.grpc_options", _MOOT_GRPC)
    if document.get("proxy_location") == "Disabled":
        raise InvalidSpec(f"{PATH}.proxy_location", "there is one HTTP proxy for all RayServices here: remove it")
    found = list_at(document, "applications", PATH)
    if not found:
        raise InvalidSpec(f"{PATH}.applications", "is required: at least one application")
    applications, need = [], Resources()
    for index, application in enumerate(found):
        where = f"{PATH}.applications[{index}]"
        applications.append(_application(application, where, document.get("logging_config")))
        for at, deployment in enumerate(list_at(application, "deployments", where)):
            need = need + _deployment(deployment, f"{where}.deployments[{at}]")
    _unique(applications, "name")
    _unique(applications, "route_prefix")
    return ServeConfig(tuple(applications), need)


def scoped(
    config: ServeConfig, *, prefix: str, route: str, variables: Mapping[str, str], runtime: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The applications under names and routes that are this RayService's own.

    `variables` are for every replica; those of an application's own runtime_env win over them. `runtime` is what must
    win over everything: marks by which processes are found.
    """
    found = []
    for application in config.applications:
        environment = application["runtime_env"]
        given = environment["env_vars"]
        own = application["route_prefix"]
        found.append(
            {
                **application,
                "name": prefix + application["name"],
                "route_prefix": None if own is None else (route if own == "/" else route + own),
                "runtime_env": {
                    **environment,
                    "env_vars": {**variables, **given, APPLICATION_PREFIX: prefix, **runtime},
                },
            }
        )
    return found


def _application(application: dict[str, Any], path: str, logging: Any) -> dict[str, Any]:
    _known(application, path, _APPLICATION)
    if not text_at(application, "import_path", path):
        raise InvalidSpec(f"{path}.import_path", "is required: module:variable")
    name = text_at(application, "name", path) or "default"
    if set("/#\\ ") & set(name) or len(name) > 100:
        raise InvalidSpec(f"{path}.name", "must be without '/', '\\', '#' and spaces, at most 100 characters")
    prefix = application.get("route_prefix", "/")
    if prefix is not None and (
        not isinstance(prefix, str) or not prefix.startswith("/") or (prefix != "/" and prefix.endswith("/"))
    ):
        raise InvalidSpec(f"{path}.route_prefix", "must begin with '/' and not end with it, or be null")
    if isinstance(prefix, str) and ("{" in prefix or "}" in prefix):
        raise InvalidSpec(f"{path}.route_prefix", "must not have '{' or '}'")
    environment = read_runtime_env(mapping_at(application, "runtime_env", path), f"{path}.runtime_env")
    made = {**application, "name": name, "route_prefix": prefix, "runtime_env": environment}
    if logging is not None:
        made.setdefault("logging_config", logging)
    return made


def _deployment(deployment: dict[str, Any], path: str) -> Resources:
    """What it needs with as many replicas as it may have.

    Options that are given replace those of the code, so Serve's default holds for what they leave out. Where none are
    given the code has the word: nothing is counted here, and what the replicas take is once Serve has read it.
    """
    _known(deployment, path, _DEPLOYMENT)
    if not text_at(deployment, "name", path):
        raise InvalidSpec(f"{path}.name", "is required")
    options = mapping_at(deployment, "ray_actor_options", path)
    where = f"{path}.ray_actor_options"
    _known(options, where, _ACTOR)
    read_runtime_env(mapping_at(options, "runtime_env", where), f"{where}.runtime_env")
    each = Resources(
        _number(options, "num_cpus", where, default=1 if options else 0),
        _number(options, "num_gpus", where, default=0),
        _number(options, "memory", where, default=0),
    )
    most = _most_replicas(deployment, path)
    surge = _number(deployment, "max_surge_percent", path, default=0)  # more of them while a change is rolled out
    return each * (most + math.ceil(most * surge / 100))


def _most_replicas(deployment: dict[str, Any], path: str) -> int:
    scaling = mapping_at(deployment, "autoscaling_config", path)
    replicas = deployment.get("num_replicas")
    if replicas == "auto" and "max_replicas" not in scaling:
        raise InvalidSpec(
            f"{path}.num_replicas", "`auto` means up to 100 replicas: set autoscaling_config.max_replicas as well"
        )
    most = scaling.get("max_replicas", 1) if scaling else 1 if replicas is None else replicas
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        where = f"{path}.autoscaling_config.max_replicas" if scaling else f"{path}.num_replicas"
        raise InvalidSpec(where, "must be a whole number, 1 or more")
    return most


def _number(options: dict[str, Any], name: str, path: str, *, default: int) -> Decimal:
    value = options.get(name)
    if value is None:
        return Decimal(default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise InvalidSpec(f"{path}.{name}", "must be a number, 0 or more")
    return Decimal(str(value))


def _known(obj: dict[str, Any], path: str, allowed: set[str]) -> None:
    for name, value in obj.items():
        if name not in allowed and value not in (None, "", [], {}, False):
            raise InvalidSpec(f"{path}.{name}", "is unknown or cannot be honoured on one machine: remove it")


def _unique(applications: list[dict[str, Any]], name: str) -> None:
    seen: dict[str, int] = {}
    for index, application in enumerate(applications):
        value = application[name]
        if value is not None and seen.setdefault(value, index) != index:
            raise InvalidSpec(
                f"{PATH}.applications[{index}].{name}", f"{value!r} is also that of applications[{seen[value]}]"
            )
