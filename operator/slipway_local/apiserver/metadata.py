"""ObjectMeta: what a client may say in it, and what is wrong with what it says (apimachinery/pkg/api/validation)."""

from __future__ import annotations

import re
from typing import Any

from slipway_local.apiserver import errors
from slipway_local.apiserver.errors import FieldError
from slipway_local.apiserver.schema import Node, compile_schema, prune
from slipway_local.apiserver.validation import validate

_STRING = {"type": "string"}
_STRINGS = {"type": "object", "additionalProperties": _STRING}


def _described(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**schema, "description": description}


METADATA_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Metadata that every object has.",
    "properties": {
        "name": _described(_STRING, "Name, unique within the namespace and the kind. Cannot be changed."),
        "generateName": _described(_STRING, "Prefix from which the server makes a unique name when name is not set."),
        "namespace": _described(_STRING, "Namespace of the object. Cannot be changed."),
        "selfLink": _described(_STRING, "No longer set."),
        "uid": _described(_STRING, "Identity of this object in time and space, set by the server."),
        "resourceVersion": _described(_STRING, "Version of this state, set by the server; opaque to clients."),
        "generation": {"type": "integer", "format": "int64", "description": "Grows when the desired state changes."},
        "creationTimestamp": _described(
            {"type": "string", "format": "date-time"}, "When the object was created, set by the server."
        ),
        "deletionTimestamp": _described(
            {"type": "string", "format": "date-time"}, "When deletion was asked for, set by the server."
        ),
        "deletionGracePeriodSeconds": {
            "type": "integer",
            "format": "int64",
            "description": "Seconds the object is given to end, set by the server.",
        },
        "labels": _described(_STRINGS, "Keys and values to select objects by."),
        "annotations": _described(_STRINGS, "Keys and values that tools keep here."),
        "ownerReferences": {
            "type": "array",
            "description": "Objects that this one belongs to; when all of them are gone, so is this one.",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "items": {
                "type": "object",
                "x-kubernetes-map-type": "atomic",
                "required": ["apiVersion", "kind", "name", "uid"],
                "properties": {
                    "apiVersion": _described(_STRING, "API version of the owner."),
                    "kind": _described(_STRING, "Kind of the owner."),
                    "name": _described(_STRING, "Name of the owner."),
                    "uid": _described(_STRING, "UID of the owner."),
                    "controller": {"type": "boolean", "description": "Whether the owner manages this object."},
                    "blockOwnerDeletion": {
                        "type": "boolean",
                        "description": "Whether a foreground deletion of the owner waits for this object.",
                    },
                },
            },
        },
        "finalizers": {
            "type": "array",
            "description": "Names of what must be done before the object may go.",
            "x-kubernetes-list-type": "set",
            "items": _STRING,
        },
        "managedFields": {
            "type": "array",
            "description": "Who set which field, kept by the server for server-side apply.",
            "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    },
}
METADATA: Node = compile_schema(METADATA_SCHEMA, "metadata")

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"

SUBDOMAIN_RE, LABEL_RE = re.compile(_SUBDOMAIN), re.compile(_LABEL)
_QUALIFIED_RE, _VALUE_RE = re.compile(_QUALIFIED), re.compile(_LABEL_VALUE)

_SUBDOMAIN_MESSAGE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_LABEL_MESSAGE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    f"an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_QUALIFIED_MESSAGE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    f"character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_VALUE_MESSAGE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    f"'{_LABEL_VALUE}')"
)
_MAX_ANNOTATIONS = 256 * 1024


def decode_metadata(obj: dict[str, Any]) -> list[str]:
    """Bring metadata into form, in place: an object, its known fields only, no nulls.

    Returns the paths of unknown fields. Raises ApiError 400 for a wrong type.
    """
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise errors.bad_request("unable to decode: json: cannot unmarshal into Go value of type v1.ObjectMeta")
    metadata = {key: value for key, value in metadata.items() if value is not None}
    unknown: list[str] = []
    prune(metadata, METADATA, "metadata", unknown)
    wrong = [e for e in validate({**metadata, "managedFields": []}, METADATA, "metadata") if "of type" in e.detail]
    if wrong:
        raise errors.bad_request(f"unable to decode: {wrong[0].field}: {wrong[0].detail}")
    obj["metadata"] = metadata
    return unknown


def check_subdomain(name: str, field: str) -> list[FieldError]:
    """RFC 1123 subdomain, at most 253 characters."""
    found = []
    if len(name) > 253:
        found.append(errors.invalid(field, name, "must be no more than 253 characters"))
    if not SUBDOMAIN_RE.fullmatch(name):
        found.append(errors.invalid(field, name, _SUBDOMAIN_MESSAGE))
    return found


def check_label_name(name: str, field: str) -> list[FieldError]:
    """RFC 1123 label, at most 63 characters."""
    found = []
    if len(name) > 63:
        found.append(errors.invalid(field, name, "must be no more than 63 bytes"))
    if not LABEL_RE.fullmatch(name):
        found.append(errors.invalid(field, name, _LABEL_MESSAGE))
    return found


def _check_qualified(key: str, field: str) -> list[FieldError]:
    prefix, slash, name = key.rpartition("/")
    if slash and (not prefix or check_subdomain(prefix, field)):
        return [errors.invalid(field, key, f"prefix part {_SUBDOMAIN_MESSAGE}")]
    if len(name) > 63:
        return [errors.invalid(field, key, "name part must be no more than 63 bytes")]
    return [] if _QUALIFIED_RE.fullmatch(name) else [errors.invalid(field, key, _QUALIFIED_MESSAGE)]


def validate_metadata(metadata: dict[str, Any], *, namespaced: bool, label_names: bool) -> list[FieldError]:
    """Everything that is wrong with an object's metadata."""
    found: list[FieldError] = []
    name = metadata.get("name", "")
    if not name:
        found.append(errors.required("metadata.name", "name or generateName is required"))
    else:
        found += (check_label_name if label_names else check_subdomain)(name, "metadata.name")
    if namespaced:
        found += check_label_name(metadata.get("namespace", ""), "metadata.namespace")
    for key, value in metadata.get("labels", {}).items():
        found += _check_qualified(key, "metadata.labels")
        if len(value) > 63:
            found.append(errors.invalid("metadata.labels", value, "must be no more than 63 bytes"))
        if not _VALUE_RE.fullmatch(value):
            found.append(errors.invalid("metadata.labels", value, _VALUE_MESSAGE))
    annotations = metadata.get("annotations", {})
    for key in annotations:
        found += _check_qualified(key.lower(), "metadata.annotations")
    if sum(len(key) + len(value) for key, value in annotations.items()) > _MAX_ANNOTATIONS:
        found.append(errors.too_long("metadata.annotations", _MAX_ANNOTATIONS))
    return found + _check_owners(metadata) + _check_finalizers(metadata)


def _check_owners(metadata: dict[str, Any]) -> list[FieldError]:
    found: list[FieldError] = []
    controllers = []
    for index, owner in enumerate(metadata.get("ownerReferences", ())):
        where = f"metadata.ownerReferences[{index}]"
        for field, message in (
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ):
            if not owner.get(field):
                found.append(errors.invalid(f"{where}.{field}", owner.get(field, ""), message))
        if owner.get("controller"):
            controllers.append(owner.get("name", ""))
    if len(controllers) > 1:
        detail = f"Only one reference can have Controller set to true. Found {len(controllers)}"
        found.append(errors.invalid("metadata.ownerReferences", metadata["ownerReferences"], detail))
    return found


def _check_finalizers(metadata: dict[str, Any]) -> list[FieldError]:
    found: list[FieldError] = []
    finalizers = metadata.get("finalizers", ())
    for name in finalizers:
        found += _check_qualified(name, "metadata.finalizers")
    if "orphan" in finalizers and "foregroundDeletion" in finalizers:
        detail = "finalizer orphan and foregroundDeletion cannot be both set"
        found.append(errors.invalid("metadata.finalizers", list(finalizers), detail))
    return found


def validate_metadata_update(new: dict[str, Any], old: dict[str, Any]) -> list[FieldError]:
    """What an update may not do: rename, change the identity, add finalizers to an object on its way out."""
    found = [
        errors.invalid(f"metadata.{field}", new.get(field, ""), "field is immutable")
        for field in ("name", "namespace", "uid", "creationTimestamp")
        if new.get(field) != old.get(field)
    ]
    if "deletionTimestamp" in old:
        added = [name for name in new.get("finalizers", ()) if name not in old.get("finalizers", ())]
        if added:
            shown = ", ".join(f'"{name}"' for name in added)
            detail = (
                "no new finalizers can be added if the object is being deleted, found new finalizers "
                f"[]string{{{shown}}}"
            )
            found.append(errors.forbidden_field("metadata.finalizers", detail))
    return found
