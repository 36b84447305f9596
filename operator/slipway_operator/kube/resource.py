"""What the API server calls things: resources, their URL paths, and the key that names one object.

Objects travel as plain JSON dicts (decoding into models costs ten times the CPU and four times the memory), so
the few accessors that every file needs are here. This file does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

Json = dict[str, Any]


class Key(NamedTuple):
    """Names one object of a known resource; `namespace` is "" for cluster-scoped ones."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True)
class Resource:
    """One REST resource (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-uris)."""

    group: str  # "" is the core group
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def label(self) -> str:
        """`plural.group`, as in RBAC and `kubectl get`; used in metrics and logs."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, of one object or of its subresource, percent-encoded.

        Without a namespace a namespaced resource's path spans all namespaces.
        Raises ValueError for a name that would leave its place in the path.
        """
        parts = ["", "apis", self.group, self.version] if self.group else ["", "api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", _segment(namespace)]
        parts.append(self.plural)
        if name is not None:
            parts.append(_segment(name))
        if subresource is not None:
            parts.append(_segment(subresource))
        return "/".join(parts)

    def path_of(self, obj: Json, subresource: str | None = None) -> str:
        """The URL path of this object; raises ValueError when its metadata does not name it completely."""
        key = key_of(obj)
        if self.namespaced and not key.namespace:
            raise ValueError(f"{self.kind} {key.name} has no metadata.namespace")
        return self.path(key.namespace, key.name, subresource)


def _segment(text: str) -> str:
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} cannot be a name in a URL path")
    return quote(text, safe="")


def key_of(obj: Json) -> Key:
    """The key of an object; raises ValueError when it has no name."""
    metadata = obj.get("metadata") or {}
    name = metadata.get("name")
    if not name:
        raise ValueError(f"{obj.get('kind', 'object')} has no metadata.name")
    return Key(metadata.get("namespace") or "", name)


def uid_of(obj: Json) -> str:
    """metadata.uid, or ""."""
    return str((obj.get("metadata") or {}).get("uid") or "")


def version_of(obj: Json) -> str:
    """metadata.resourceVersion, or ""."""
    return str((obj.get("metadata") or {}).get("resourceVersion") or "")


def at_least(version: str, wanted: str) -> bool | None:
    """Whether one resourceVersion is the other or a later one; None when they cannot be ordered.

    Versions are decimal counters of one sequence (KEP-5504 made that a promise); from a server that keeps to the
    older contract of opaque strings only equality is known.
    """
    if version == wanted:
        return True
    if version.isdecimal() and wanted.isdecimal():
        return int(version) >= int(wanted)
    return None


def controller_of(obj: Json) -> Json | None:
    """The ownerReference with `controller: true`, or None."""
    references: Iterable[Json] = (obj.get("metadata") or {}).get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


TRAINJOBS = Resource("slipway.dev", "v1alpha1", "trainjobs", "TrainJob")
EVALJOBS = Resource("slipway.dev", "v1alpha1", "evaljobs", "EvalJob")
DEPLOYMENTS = Resource("slipway.dev", "v1alpha1", "deployments", "Deployment")
RAYJOBS = Resource("ray.io", "v1", "rayjobs", "RayJob")
RAYSERVICES = Resource("ray.io", "v1", "rayservices", "RayService")
PODS = Resource("", "v1", "pods", "Pod")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap")
EVENTS = Resource("", "v1", "events", "Event")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
PRIORITYCLASSES = Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False)
NETWORKPOLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
