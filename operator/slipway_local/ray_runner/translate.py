"""Turns a RayJob into a job for the local Ray: an entrypoint, a runtime environment and files. Pure.

Where secrets go, and where they never go:
- A value from a Secret is never in Ray's runtime_env, metadata or entrypoint, because Ray shows these in its dashboard,
  hands them to every worker and writes them to its logs.
- Secret volumes become files under the run's own directory; a variable that names a path below a mount path (alone, or
  inside a JSON document) names the file's real place instead. Text of the entrypoint is not rewritten.
- Secret variables stand in `launch.sh`, which only the owner can read. The entrypoint sources it, so they reach the
  driver's process and what it starts itself, but not Ray's workers.

Plain variables of the head go to the driver and, through runtime_env, to the workers, whose own template adds to them
and wins where both set one: in a cluster, too, each side has its own.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slipway_local.ray_runner.cluster import WorkerGroup
from slipway_local.ray_runner.errors import InvalidSpec, MissingReference
from slipway_local.ray_runner.pod import EnvVar, KeySource, Mount, ObjectRef, Pod
from slipway_local.ray_runner.serve_config import APPLICATION_PREFIX
from slipway_local.ray_runner.spec import RayJobRequest

MARK = "SLIPWAY_RAY_JOB"
"""Variable in the environment of every process of a job, by which they are found when they must be gone."""

SERVICE_MARK = "SLIPWAY_RAY_SERVICE"
"""The same for every replica of a service."""

LAUNCH_SCRIPT = "launch.sh"
DRIVER_PID = "driver.pid"
WORK = "work"
MOUNTS = "mounts"
OWN_VARIABLES = {
    MARK,
    SERVICE_MARK,
    APPLICATION_PREFIX,
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
}
_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_]*)\))")

Objects = Mapping[ObjectRef, Mapping[str, bytes]]
"""The data of the Secrets and ConfigMaps that exist, among those that a request refers to."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the run takes place, and as whose."""

    run_dir: Path
    bin_dir: Path  # with the `python` that has this installation
    mark: str
    metadata: Mapping[str, Any]  # the object's


@dataclass(frozen=True)
class Launch:
    """What is given to Ray, and the files (relative to the run directory) that must be there before."""

    entrypoint: str
    runtime_env: dict[str, Any]
    files: dict[str, bytes]
    directories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """The value of a variable, whether it comes from a Secret, and the field that sets it."""

    text: str
    secret: bool
    path: str


class HasPods(Protocol):
    """A request with the pods of a Ray cluster."""

    @property
    def head(self) -> Pod:
        """The head's."""

    @property
    def groups(self) -> tuple[WorkerGroup, ...]:
        """The workers'."""


@dataclass(frozen=True)
class Surroundings:
    """What pods that share one machine find there: variables, files and directories (relative to the run directory)."""

    head: Mapping[str, Variable]
    workers: Mapping[str, str]
    files: Mapping[str, bytes]
    directories: tuple[str, ...]
    roots: Mapping[str, str]
    """Where each mount path really is."""


def references(request: HasPods) -> dict[ObjectRef, bool]:
    """The objects that a run needs; True for those that it can do without."""
    found: dict[ObjectRef, bool] = {}
    for pod in _pods(request):
        for ref, optional in pod.references():
            found[ref] = found.get(ref, True) and optional
    return found


def translate(request: RayJobRequest, objects: Objects, place: Place) -> Launch:
    """The local job. Raises InvalidSpec, or MissingReference for an object or a key that may still come."""
    around = surroundings(request, objects, place)
    head = around.head
    plain = {name: value.text for name, value in head.items() if not value.secret}
    shared = {**plain, **around.workers, **request.runtime_env.get("env_vars", {}), MARK: place.mark}
    given = request.runtime_env.get("env_vars", {})
    driver_only = {name: v.text for name, v in head.items() if name not in given and shared.get(name) != v.text}
    files = {**around.files, LAUNCH_SCRIPT: _launch_script(place, driver_only).encode()}
    return Launch(
        entrypoint=f". {shlex.quote(f'{place.run_dir}/{LAUNCH_SCRIPT}')} || exit 75\n{request.entrypoint}",
        runtime_env={**request.runtime_env, "env_vars": shared},
        files=files,
        directories=(WORK, *around.directories),
    )


def surroundings(request: HasPods, objects: Objects, place: Place) -> Surroundings:
    """Variables and files of the pods. Raises InvalidSpec, or MissingReference."""
    mounts = _mounts(request)
    roots = {mount.mount_path: f"{place.run_dir}/{MOUNTS}{mount.mount_path}" for mount in mounts}
    return Surroundings(
        head=_environment(request.head, objects, place, roots),
        workers=_worker_environment(request, objects, place, roots),
        files=dict(_files(mounts, objects)),
        directories=tuple(f"{MOUNTS}{mount.mount_path}" for mount in mounts if not mount.sub_path),
        roots=roots,
    )


def _pods(request: HasPods) -> list[Pod]:
    return [request.head, *(group.pod for group in request.groups)]


def _mounts(request: HasPods) -> list[Mount]:
    found: dict[str, Mount] = {}
    for pod in _pods(request):
        for mount in pod.mounts:
            other = found.setdefault(mount.mount_path, mount)
            if (other.sub_path, other.sources) != (mount.sub_path, mount.sources):
                raise InvalidSpec(mount.path, f"{mount.mount_path} is another volume in {other.path}: use another path")
    return list(found.values())


# -- environment ---------------------------------------------------------------------------------------------------


def _environment(pod: Pod, objects: Objects, place: Place, roots: Mapping[str, str]) -> dict[str, Variable]:
    found: dict[str, Variable] = {}
    for everything in pod.env_from:
        secret = everything.ref.kind == "Secret"
        for key, data in _data(objects, everything.ref, everything.optional).items():
            # The kubelet skips keys that are no variable names, too.
            if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", everything.prefix + key):
                text = _decode(data, everything.path, everything.ref, key)
                found[everything.prefix + key] = Variable(text, secret, everything.path)
    for variable in pod.env:
        value = _value(variable, found, objects, place)
        if value is not None:
            found[variable.name] = value
    for name, value in found.items():
        if name in OWN_VARIABLES:
            raise InvalidSpec(value.path, f"{name} is set by the runner: remove it")
        text = _reroot(value.text, roots)
        if name == "PATH":
            text = f"{place.bin_dir}:{text}"
        found[name] = Variable(text, value.secret, value.path)
    return found


def _value(variable: EnvVar, known: Mapping[str, Variable], objects: Objects, place: Place) -> Variable | None:
    if variable.source is not None:
        text = _key(variable, variable.source, objects)
        return None if text is None else Variable(text, variable.source.ref.kind == "Secret", variable.path)
    if variable.field_path:
        field = variable.field_path.removeprefix("metadata.")
        return Variable(str(place.metadata.get(field, "")), False, variable.path)
    secret = False

    def expand(match: re.Match[str]) -> str:
        nonlocal secret
        if match[1] == "$":
            return "$"
        if match[2] not in known:
            return match[0]
        secret = secret or known[match[2]].secret
        return known[match[2]].text

    text = _REFERENCE.sub(expand, variable.value)
    return Variable(text, secret, variable.path)


def _key(variable: EnvVar, source: KeySource, objects: Objects) -> str | None:
    data = _data(objects, source.ref, source.optional)
    if source.key in data:
        return _decode(data[source.key], variable.path, source.ref, source.key)
    if source.optional:
        return None
    raise MissingReference(f"{source.ref} has no key {source.key!r}")


def _worker_environment(request: HasPods, objects: Objects, place: Place, roots: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for group in request.groups:
        for name, value in _environment(group.pod, objects, place, roots).items():
            if value.secret:
                raise InvalidSpec(
                    value.path,
                    "a worker's environment passes through Ray's runtime_env, which the Ray dashboard shows: "
                    "mount the Secret as a volume instead",
                )
            if found.setdefault(name, value.text) != value.text:
                raise InvalidSpec(value.path, f"{name} differs between worker groups, which share one environment here")
    return found


def _reroot(text: str, roots: Mapping[str, str]) -> str:
    if text.startswith(("{", "[")):
        try:
            document = json.loads(text)
        except ValueError:
            return text
        moved = reroot_document(document, roots)
        return text if moved == document else json.dumps(moved, separators=(",", ":"))
    return _reroot_path(text, roots)


def reroot_document(value: Any, roots: Mapping[str, str]) -> Any:
    """A JSON document in which texts that name a path below a mount path name its real place."""
    if isinstance(value, dict):
        return {name: reroot_document(item, roots) for name, item in value.items()}
    if isinstance(value, list):
        return [reroot_document(item, roots) for item in value]
    return _reroot_path(value, roots) if isinstance(value, str) else value


def _reroot_path(text: str, roots: Mapping[str, str]) -> str:
    for mount_path in sorted(roots, key=len, reverse=True):
        if text == mount_path or text.startswith(f"{mount_path}/"):
            return roots[mount_path] + text[len(mount_path) :]
    return text


def _launch_script(place: Place, variables: Mapping[str, str]) -> str:
    lines = [
        f"echo $$ > {shlex.quote(f'{place.run_dir}/{DRIVER_PID}')}",
        f"cd {shlex.quote(f'{place.run_dir}/{WORK}')}",
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())),
    ]
    return "\n".join(lines) + "\n"


# -- files ---------------------------------------------------------------------------------------------------------


def _files(mounts: list[Mount], objects: Objects) -> Iterator[tuple[str, bytes]]:
    for mount in mounts:
        content: dict[str, bytes] = {}
        for source in mount.sources:
            data = _data(objects, source.ref, source.optional)
            for key, relative in source.items or tuple((key, key) for key in data):
                if key in data:
                    content[relative] = data[key]
                elif not source.optional:
                    raise MissingReference(f"{source.ref} has no key {key!r}")
        if not mount.sub_path:
            yield from ((f"{MOUNTS}{mount.mount_path}/{relative}", data) for relative, data in content.items())
        elif mount.sub_path in content:
            yield f"{MOUNTS}{mount.mount_path}", content[mount.sub_path]
        else:
            raise MissingReference(f"the volume at {mount.mount_path} has no {mount.sub_path!r}")


def _data(objects: Objects, ref: ObjectRef, optional: bool) -> Mapping[str, bytes]:
    if ref in objects:
        return objects[ref]
    if optional:
        return {}
    raise MissingReference(f"{ref} does not exist")


def _decode(data: bytes, path: str, ref: ObjectRef, key: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InvalidSpec(path, f"key {key!r} of {ref} is not text, so it cannot be a variable: mount it instead")
    return text
