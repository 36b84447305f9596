"""From a decoded body to an object that may be stored: identity, pruning, defaults, validation.

Everything here is pure computation on one object; what is stored already, and when, is decided in resources.py.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import replace
from typing import Any

from slipway_local.apiserver import errors
from slipway_local.apiserver.celrules import evaluate
from slipway_local.apiserver.codec import copy, same
from slipway_local.apiserver.errors import ApiError, FieldError
from slipway_local.apiserver.metadata import decode_metadata, validate_metadata, validate_metadata_update
from slipway_local.apiserver.registry import Kind
from slipway_local.apiserver.schema import MISSING, apply_defaults, prune, prune_nulls
from slipway_local.apiserver.validation import validate, validate_lists

Object = dict[str, Any]

# Letters and digits that make no words and are not mistaken for each other (apimachinery/pkg/util/rand).
_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_MAX_GENERATED_PREFIX = 58
_BLOCKED = (
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation"
)
_SYSTEM_METADATA = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")


def check_type(kind: Kind, obj: Any) -> None:
    """Raise 400 where a body is no object of the kind that the path names."""
    if not isinstance(obj, dict):
        raise errors.bad_request("the request body must be one object")
    said = obj.get("apiVersion"), obj.get("kind")
    for name, value in zip(("apiVersion", "kind"), said, strict=True):
        if value is not None and not isinstance(value, str):
            raise errors.bad_request(f"couldn't get version/kind; json parse error: {name} must be a string")
    if not said[1] and not said[0]:
        obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
        said = kind.api_version, kind.kind
    if not said[1]:
        raise errors.bad_request("Object 'Kind' is missing")
    if said[0] != kind.api_version:
        raise errors.bad_request(
            f"the API version in the data ({said[0]}) does not match the expected API version ({kind.api_version})"
        )
    if said[1] != kind.kind and kind.custom:
        metadata = obj.get("metadata")
        name = metadata.get("name", "") if isinstance(metadata, dict) else ""
        wrong = errors.invalid("kind", said[1], f"must be {kind.kind}")
        raise errors.unprocessable(str(said[1]), kind.group, str(name), [wrong])
    if said[1] != kind.kind:
        raise errors.bad_request(
            f'{said[1]} in version "{kind.version}" cannot be handled as a {kind.kind}: the kind in the data '
            f"({said[1]}) does not match the expected kind ({kind.kind})"
        )


def tidy(kind: Kind, obj: Object) -> list[str]:
    """Prune what the schema does not know, in place; returns the paths. Raises 400 for malformed metadata."""
    if not kind.custom:
        _drop_nulls(obj)
    unknown = decode_metadata(obj)
    metadata = obj.pop("metadata")
    prune(obj, kind.node, "", unknown)
    obj["metadata"] = metadata
    return sorted(unknown)


def _drop_nulls(value: Any) -> None:
    # To a built-in kind's decoder a null is a field that is not there.
    if isinstance(value, dict):
        for name in [name for name, child in value.items() if child is None]:
            del value[name]
        for child in value.values():
            _drop_nulls(child)
    elif isinstance(value, list):
        for child in value:
            _drop_nulls(child)


def strict_failures(unknown: list[str], duplicates: list[str]) -> list[str]:
    """The complaints of strict decoding."""
    return [f'unknown field "{path}"' for path in unknown] + [f'duplicate field "{path}"' for path in duplicates]


def refuse_strictly(kind: Kind, failures: list[str]) -> ApiError:
    """400: fieldValidation=Strict found something in a whole object."""
    return errors.bad_request(
        f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: strict decoding error: '
        + ", ".join(failures)
    )


def check_place(kind: Kind, obj: Object, namespace: str, name: str | None) -> None:
    """Make the body's namespace and name those of the path. Raises 400 where they contradict each other."""
    metadata = obj["metadata"]
    if kind.namespaced:
        said = metadata.setdefault("namespace", namespace) or namespace
        if said != namespace:
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        metadata["namespace"] = namespace
    elif metadata.pop("namespace", None):
        raise errors.bad_request("namespace may not be set on a cluster-scoped object")
    if name is not None:
        said = metadata.setdefault("name", name)
        if said != name:
            raise errors.bad_request(f"the name of the object ({said}) does not match the name on the URL ({name})")


def prepare_create(kind: Kind, obj: Object, now: str) -> None:
    """Set, in place, what the server sets on a new object."""
    metadata = obj["metadata"]
    if metadata.get("resourceVersion"):
        raise errors.untyped_failure("resourceVersion should not be set on objects to be created")
    for field in (*_SYSTEM_METADATA, "resourceVersion", "selfLink"):
        metadata.pop(field, None)
    if not metadata.get("name") and metadata.get("generateName"):
        suffix = "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(5))
        metadata["name"] = metadata["generateName"][:_MAX_GENERATED_PREFIX] + suffix
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now
    if kind.generations:
        metadata["generation"] = 1
        if kind.status:
            obj.pop("status", None)
    _complete(kind, obj)
    if kind.prepare is not None:
        kind.prepare(obj, None)


def prepare_update(kind: Kind, old: Object, new: Object, subresource: str) -> Object:
    """The object that an update asks for: what it may not touch is as it was."""
    if subresource == "status":
        result = copy(old)
        result.pop("status", None)
        if "status" in new:
            result["status"] = new["status"]
        if kind.custom or kind.generations:
            new = result
        else:
            new = {**new, **{key: value for key, value in result.items() if key != "metadata"}}
    elif kind.status:
        new.pop("status", None)
        if "status" in old:
            new["status"] = copy(old["status"])
    metadata, before = new["metadata"], old["metadata"]
    for field in _SYSTEM_METADATA:
        metadata.pop(field, None)
        if field in before:
            metadata[field] = before[field]
    metadata.pop("selfLink", None)
    metadata["resourceVersion"] = before["resourceVersion"]
    _complete(kind, new)
    if kind.prepare is not None:
        kind.prepare(new, old)
    if kind.generations and _spec_of(new) != _spec_of(old):
        metadata["generation"] = before.get("generation", 0) + 1
    return new


def _complete(kind: Kind, obj: Object) -> None:
    apply_defaults(obj, kind.node)
    if kind.custom:
        prune_nulls(obj, kind.body)


def _spec_of(obj: Object) -> Object:
    left_out = ("metadata", "status") if "status" in obj else ("metadata",)
    return {key: value for key, value in obj.items() if key not in left_out}


def validate_object(kind: Kind, new: Object, old: Object | None, subresource: str = "") -> None:
    """Raise 422 with everything that is wrong; 400 where a built-in kind's type is wrong: it could not be decoded."""
    metadata = new["metadata"]
    found = validate_metadata(metadata, namespaced=kind.namespaced, label_names=kind.label_names)
    if kind.name_rules is not None:
        named = {key: metadata[key] for key in ("name", "generateName") if key in metadata}
        found += validate(named, kind.name_rules, "metadata")
    if old is not None:
        found += validate_metadata_update(metadata, old["metadata"])
    wrong = validate(new, kind.body, "", MISSING if old is None else old)
    if subresource and kind.custom:
        # kube-apiserver validates the status alone, and its messages count from there.
        inside = f"{subresource}."
        wrong = [replace(e, detail=e.detail.replace(e.field, e.field.removeprefix(inside), 1)) for e in wrong]
    if wrong and not kind.custom:
        _refuse_undecodable(kind, wrong)
    found += wrong
    if not wrong or all(not error.blocking for error in wrong):
        found += _check_rules(kind, new, old)
    else:
        found += [errors.invalid("<nil>", None, _BLOCKED)] if kind.rules is not None else []
    if found:
        raise errors.unprocessable(kind.kind, kind.group, metadata.get("name", ""), found)


def _check_rules(kind: Kind, new: Object, old: Object | None) -> list[FieldError]:
    found: list[FieldError] = []
    if old is None or not validate_lists(old, kind.body, ""):
        found += validate_lists(new, kind.body, "")
    if kind.check is not None:
        found += kind.check(new, old)
    if kind.rules is not None and not any(error.blocking for error in found):
        found += evaluate(kind.rules, _for_rules(new), "", MISSING if old is None else _for_rules(old))
    return found


def _for_rules(obj: Object) -> Object:
    # Rules see nothing of metadata but the name.
    metadata = obj["metadata"]
    visible = {key: metadata[key] for key in ("name", "generateName") if key in metadata}
    return {**obj, "metadata": visible}


def _refuse_undecodable(kind: Kind, wrong: list[FieldError]) -> None:
    types = [error for error in wrong if "must be of type" in error.detail]
    if types:
        raise errors.bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: json: cannot unmarshal: '
            f"{types[0].field}: {types[0].detail}"
        )


def unchanged(old: Object, new: Object) -> bool:
    """Whether a write would store what is stored, not counting the times in managedFields."""
    if _without_entries(old) != _without_entries(new):
        return False
    if _entries(old) != _entries(new):
        return False
    return same(_without_entries(old), _without_entries(new))


def _without_entries(obj: Object) -> Object:
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "managedFields"}}


def _entries(obj: Object) -> list[Object]:
    rows = [{k: v for k, v in row.items() if k != "time"} for row in obj["metadata"].get("managedFields") or []]
    return sorted(rows, key=lambda row: (row["manager"], row["operation"], row.get("subresource", "")))
