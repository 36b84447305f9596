"""Reads a pod template as far as it means something for a process on this machine: environment, files, resources."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from slipway_api.quantity import parse_quantity
from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.reading import list_at, mapping_at, only, text_at
from slipway_local.ray_runner.resources import Resources

_POD = {"containers", "volumes", "priorityClassName"}
_MOOT_POD = {
    "affinity",
    "automountServiceAccountToken",
    "dnsPolicy",
    "enableServiceLinks",
    "imagePullSecrets",
    "nodeName",
    "nodeSelector",
    "preemptionPolicy",
    "priority",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "securityContext",
    "serviceAccount",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
}
_CONTAINER = {"env", "envFrom", "resources", "volumeMounts"}
_MOOT_CONTAINER = {
    "name",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "securityContext",
    "startupProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
}
_MACHINE_DIRECTORIES = ("/dev/shm", "/tmp")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid")


class ObjectRef(NamedTuple):
    """An object in the RayJob's namespace; kind is Secret or ConfigMap."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class KeySource:
    """One key of a Secret or ConfigMap."""

    ref: ObjectRef
    key: str
    optional: bool


@dataclass(frozen=True, slots=True)
class EnvVar:
    """A variable: a text, a key of an object or a field of the RayJob's metadata."""

    path: str
    name: str
    value: str = ""
    source: KeySource | None = None
    field_path: str = ""


@dataclass(frozen=True, slots=True)
class EnvFrom:
    """All keys of an object as variables."""

    path: str
    ref: ObjectRef
    prefix: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Mount:
    """Files at a path: keys of Secrets and ConfigMaps, or an empty directory when there is no source.

    `items` is (key, relative path) or empty for all keys; `sub_path` mounts one file of the volume.
    """

    path: str
    mount_path: str
    sub_path: str
    sources: tuple[MountSource, ...]


@dataclass(frozen=True, slots=True)
class MountSource:
    """One object of a volume."""

    ref: ObjectRef
    items: tuple[tuple[str, str], ...]
    optional: bool


@dataclass(frozen=True, slots=True)
class Pod:
    """What a pod template asks for."""

    path: str
    resources: Resources = field(default_factory=Resources)
    priority_class: str = ""
    env_from: tuple[EnvFrom, ...] = ()
    env: tuple[EnvVar, ...] = ()
    mounts: tuple[Mount, ...] = ()

    def references(self) -> Iterator[tuple[ObjectRef, bool]]:
        """The objects that the pod needs, and whether it can do without each."""
        for everything in self.env_from:
            yield everything.ref, everything.optional
        for variable in self.env:
            if variable.source:
                yield variable.source.ref, variable.source.optional
        for mount in self.mounts:
            for source in mount.sources:
                yield source.ref, source.optional


def read_pod(template: dict[str, Any], path: str) -> Pod:
    """A pod template. Raises InvalidSpec naming what cannot be honoured on one machine."""
    only(template, path, {"metadata", "spec"})
    path = f"{path}.spec"
    spec = mapping_at(template, "spec", path)
    only(spec, path, _POD | _MOOT_POD)
    containers = list_at(spec, "containers", path)
    if len(containers) > 1:
        raise InvalidSpec(f"{path}.containers[1]", "only the Ray container can run on one machine")
    if not containers:
        return Pod(path, priority_class=text_at(spec, "priorityClassName", path))
    container, where = containers[0], f"{path}.containers[0]"
    only(container, where, _CONTAINER | _MOOT_CONTAINER)
    volumes = {
        text_at(volume, "name", path): (volume, f"{path}.volumes[{index}]")
        for index, volume in enumerate(list_at(spec, "volumes", path))
    }
    mounts = [
        _mount(mount, f"{where}.volumeMounts[{index}]", volumes)
        for index, mount in enumerate(list_at(container, "volumeMounts", where))
    ]
    return Pod(
        path=path,
        resources=_resources(mapping_at(container, "resources", where), f"{where}.resources"),
        priority_class=text_at(spec, "priorityClassName", path),
        env_from=tuple(
            _env_from(entry, f"{where}.envFrom[{index}]")
            for index, entry in enumerate(list_at(container, "envFrom", where))
        ),
        env=tuple(_env(entry, f"{where}.env[{index}]") for index, entry in enumerate(list_at(container, "env", where))),
        mounts=tuple(mount for mount in mounts if mount is not None),
    )


def _resources(resources: dict[str, Any], path: str) -> Resources:
    """The larger of request and limit: the scheduler goes by the one, Ray by the other."""
    amounts: dict[str, Any] = {}
    for kind in ("requests", "limits"):
        for name, text in mapping_at(resources, kind, path).items():
            where = f"{path}.{kind}[{name}]"
            try:
                amount = parse_quantity(text)
            except ValueError as error:
                raise InvalidSpec(where, str(error)) from None
            if amount < 0:
                raise InvalidSpec(where, "must not be negative")
            if name not in ("cpu", "memory", "nvidia.com/gpu", "ephemeral-storage") and amount:
                raise InvalidSpec(where, "this machine has no such resource: only cpu, memory and nvidia.com/gpu")
            amounts[name] = max(amount, amounts.get(name, amount))
    zero = parse_quantity(0)
    return Resources(amounts.get("cpu", zero), amounts.get("nvidia.com/gpu", zero), amounts.get("memory", zero))


def _env(entry: dict[str, Any], path: str) -> EnvVar:
    only(entry, path, {"name", "value", "valueFrom"})
    name = text_at(entry, "name", path)
    if not _ENV_NAME.fullmatch(name):
        raise InvalidSpec(f"{path}.name", f"must be letters, digits and '_': {name!r}")
    origin = mapping_at(entry, "valueFrom", path)
    if not origin:
        return EnvVar(path, name, text_at(entry, "value", path))
    where = f"{path}.valueFrom"
    only(origin, where, {"secretKeyRef", "configMapKeyRef", "fieldRef"})
    for kind, word in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
        reference = mapping_at(origin, word, where)
        if reference:
            source = KeySource(
                _object(kind, reference, "name", f"{where}.{word}"),
                text_at(reference, "key", f"{where}.{word}"),
                bool(reference.get("optional")),
            )
            return EnvVar(path, name, source=source)
    field_path = text_at(mapping_at(origin, "fieldRef", where), "fieldPath", f"{where}.fieldRef")
    if field_path not in _FIELDS:
        raise InvalidSpec(f"{where}.fieldRef.fieldPath", f"must be one of {', '.join(_FIELDS)}: {field_path!r}")
    return EnvVar(path, name, field_path=field_path)


def _env_from(entry: dict[str, Any], path: str) -> EnvFrom:
    only(entry, path, {"prefix", "secretRef", "configMapRef"})
    kind, word = ("Secret", "secretRef") if entry.get("secretRef") else ("ConfigMap", "configMapRef")
    reference = mapping_at(entry, word, path)
    ref = _object(kind, reference, "name", f"{path}.{word}")
    return EnvFrom(path, ref, text_at(entry, "prefix", path), bool(reference.get("optional")))


def _mount(mount: dict[str, Any], path: str, volumes: dict[str, tuple[dict[str, Any], str]]) -> Mount | None:
    only(mount, path, {"name", "mountPath", "subPath", "readOnly"})
    mount_path = text_at(mount, "mountPath", path)
    parts = PurePosixPath(mount_path).parts
    if not mount_path.startswith("/") or len(parts) < 2 or ".." in parts:
        raise InvalidSpec(f"{path}.mountPath", f"must be an absolute path without '..': {mount_path!r}")
    name = text_at(mount, "name", path)
    if name not in volumes:
        raise InvalidSpec(f"{path}.name", f"there is no volume {name!r}")
    volume, where = volumes[name]
    mount_path = str(PurePosixPath(mount_path))
    sub_path = _relative(text_at(mount, "subPath", path), f"{path}.subPath") if mount.get("subPath") else ""
    if "emptyDir" in volume:
        only(volume, where, {"name", "emptyDir"})
        # A pod gets its own; one machine has one of each, and libraries use them without asking.
        return None if mount_path in _MACHINE_DIRECTORIES else Mount(path, mount_path, "", ())
    return Mount(path, mount_path, sub_path, tuple(_sources(volume, where)))


def _sources(volume: dict[str, Any], path: str) -> Iterator[MountSource]:
    only(volume, path, {"name", "secret", "configMap", "projected"})
    if volume.get("projected"):
        for index, source in enumerate(list_at(mapping_at(volume, "projected", path), "sources", path)):
            where = f"{path}.projected.sources[{index}]"
            only(source, where, {"secret", "configMap"})
            yield from _object_sources(source, where, "name")
    elif volume.get("secret") or volume.get("configMap"):
        yield from _object_sources(volume, path, "secretName")
    else:
        raise InvalidSpec(path, "must be a secret, a configMap, an emptyDir or projected from the first two")


def _object_sources(volume: dict[str, Any], path: str, secret_field: str) -> Iterator[MountSource]:
    for kind, word, name in (("Secret", "secret", secret_field), ("ConfigMap", "configMap", "name")):
        source = mapping_at(volume, word, path)
        if source:
            where = f"{path}.{word}"
            items = tuple(
                (text_at(item, "key", where), _relative(text_at(item, "path", where), f"{where}.items[{index}].path"))
                for index, item in enumerate(list_at(source, "items", where))
            )
            yield MountSource(_object(kind, source, name, where), items, bool(source.get("optional")))


def _object(kind: str, reference: dict[str, Any], name_field: str, path: str) -> ObjectRef:
    name = text_at(reference, name_field, path)
    if not name:
        raise InvalidSpec(f"{path}.{name_field}", "is required")
    return ObjectRef(kind, name)


def _relative(text: str, path: str) -> str:
    parts = PurePosixPath(text).parts
    if not parts or text.startswith("/") or ".." in parts:
        raise InvalidSpec(path, f"must be a relative path without '..': {text!r}")
    return str(PurePosixPath(text))
