"""Checks manifests before they are sent, with the very code that the local API server admits objects with.

So the same manifest gets the same complaints here, there, and (schema and CEL being the CRD's) from a real
kube-apiserver, but with the file and the document named. Only kinds of ours are checked; no rule lives here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from slipway_api import GROUP
from slipway_cli.errors import CliError, ManifestError
from slipway_cli.manifests import Manifest


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one manifest."""

    manifest: Manifest
    field: str  # path of the field, "" for the object as a whole
    message: str

    def __str__(self) -> str:
        return f"{self.manifest}: {self.field}: {self.message}" if self.field else f"{self.manifest}: {self.message}"


def is_ours(manifest: Manifest) -> bool:
    """Whether the manifest is of a kind that this package defines."""
    return str(manifest.obj["apiVersion"]).partition("/")[0] == GROUP


def check(manifests: Iterable[Manifest], namespace: str = "default") -> list[Problem]:
    """What is wrong with these manifests; manifests of other groups are passed over.

    Raises CliError where the packages that this needs are not installed.
    """
    return [problem for manifest in manifests if is_ours(manifest) for problem in _check(manifest, namespace)]


def raise_for(problems: list[Problem]) -> None:
    """Raises ManifestError when there is any problem."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ManifestError(
            f"the manifest has {count}; nothing was sent",
            details=tuple(map(str, problems)),
            hint="kubectl explain trainjob.spec --recursive   describes every field",
        )


def _check(manifest: Manifest, namespace: str) -> list[Problem]:
    kinds, admission, api_error = _machinery()
    name = (manifest.obj["apiVersion"], manifest.obj["kind"])
    kind = kinds.get(name)
    if kind is None:
        known = ", ".join(f"{version} {kind_name}" for version, kind_name in kinds)
        return [Problem(manifest, "", f"there is no {name[1]} in {name[0]}; there is: {known}")]
    from slipway_local.apiserver.codec import copy  # noqa: PLC0415 - see _machinery

    obj = copy(manifest.obj)
    try:
        unknown = admission.tidy(kind, obj)
        admission.check_place(kind, obj, obj["metadata"].get("namespace") or namespace, None)
        problems = [Problem(manifest, path, "unknown field") for path in unknown]
    except api_error as error:
        return [Problem(manifest, "", error.message)]
    try:
        admission.prepare_create(kind, obj, "1970-01-01T00:00:00Z")
        admission.validate_object(kind, obj, None)
    except api_error as error:
        causes = (error.details or {}).get("causes") or [{"field": "", "message": error.message}]
        problems += [
            Problem(manifest, str(cause["field"]).replace("<nil>", ""), str(cause["message"])) for cause in causes
        ]
    return problems


@cache
def _machinery() -> tuple[dict[tuple[str, str], Any], Any, type[Any]]:
    """The kinds by (apiVersion, kind), the admission module and its error."""
    try:
        from slipway_local.apiserver import admission, crds  # noqa: PLC0415 - 0.3 s and the extra [local]
        from slipway_local.apiserver.errors import ApiError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("slipway_"):
            raise
        raise CliError(
            f"checking manifests needs the package {error.name}, which is not installed",
            hint="pip install 'slipway[local]'",
        ) from error
    from slipway_api.crd import crds as definitions  # noqa: PLC0415

    kinds = [kind for definition in definitions() for kind in crds.kinds_of(definition)]
    return {(kind.api_version, kind.kind): kind for kind in kinds}, admission, ApiError
