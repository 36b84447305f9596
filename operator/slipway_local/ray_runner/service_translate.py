"""Turns a RayService into applications for the shared Ray Serve and files for its replicas. Pure.

The rules about secrets are those of `translate.py`. Every replica is a Ray worker, so a variable from a Secret has no
place where Ray would not show it, on the head's template either, and is refused: mount the Secret. Paths of mounted
files are rewritten in variables, in `args` and in `user_config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.serve_config import PATH, ServeConfig, scoped
from slipway_local.ray_runner.service_spec import RayServiceRequest
from slipway_local.ray_runner.translate import (
    OWN_VARIABLES,
    SERVICE_MARK,
    Objects,
    Place,
    Surroundings,
    reroot_document,
    surroundings,
)


@dataclass(frozen=True)
class ServicePlan:
    """What is given to Serve, and the files (relative to the service's directory) that must be there before."""

    applications: list[dict[str, Any]]
    files: dict[str, bytes]
    directories: tuple[str, ...]


def prefix_of(namespace: str, name: str, uid: str) -> str:
    """What stands before the names of a RayService's applications: no two RayServices that ever were share it."""
    return f"{namespace}_{name}_{uid[:8]}_"


def route_of(namespace: str, name: str) -> str:
    """Where its paths begin."""
    return f"/{namespace}/{name}"


def translate_service(request: RayServiceRequest, objects: Objects, place: Place) -> ServicePlan:
    """The local applications. Raises InvalidSpec, or MissingReference for an object or a key that may still come."""
    metadata = place.metadata
    around = surroundings(request, objects, place)
    variables = {name: value.text for name, value in _plain(around).items()} | dict(around.workers)
    _refuse_own_variables(request.config)
    applications = scoped(
        request.config,
        prefix=prefix_of(metadata["namespace"], metadata["name"], metadata["uid"]),
        route=route_of(metadata["namespace"], metadata["name"]),
        variables={**_PRIORITY, **variables},
        runtime={SERVICE_MARK: place.mark},
    )
    return ServicePlan(
        applications=[_rerooted(application, around) for application in applications],
        files=dict(around.files),
        directories=around.directories,
    )


# Ray gives every worker a niceness of 15, but not before it has imported what it needs: until then a new one (of a
# candidate that loads, of a training run) would keep both cores from the replicas that answer, for seconds. Training
# keeps the 15.
_PRIORITY = {"RAY_worker_niceness": "0"}


def _plain(around: Surroundings) -> dict[str, Any]:
    for value in around.head.values():
        if value.secret:
            raise InvalidSpec(
                value.path,
                "a replica's environment passes through Ray's runtime_env, which the Ray dashboard shows: "
                "mount the Secret as a volume instead",
            )
    return dict(around.head)


def _refuse_own_variables(config: ServeConfig) -> None:
    for index, application in enumerate(config.applications):
        where = f"{PATH}.applications[{index}]"
        given = {f"{where}.runtime_env": application["runtime_env"]}
        for at, deployment in enumerate(application.get("deployments") or ()):
            options = deployment.get("ray_actor_options") or {}
            given[f"{where}.deployments[{at}].ray_actor_options.runtime_env"] = options.get("runtime_env") or {}
        for path, environment in given.items():
            for name in sorted(OWN_VARIABLES & set(environment.get("env_vars") or ())):
                raise InvalidSpec(f"{path}.env_vars.{name}", "is set by the runner: remove it")


def _rerooted(application: dict[str, Any], around: Surroundings) -> dict[str, Any]:
    made = dict(application)
    if "args" in made:
        made["args"] = reroot_document(made["args"], around.roots)
    if made.get("deployments"):
        made["deployments"] = [
            {**deployment, "user_config": reroot_document(deployment["user_config"], around.roots)}
            if "user_config" in deployment
            else deployment
            for deployment in made["deployments"]
        ]
    return made
