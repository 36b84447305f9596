"""Bodies in Kubernetes' protobuf encoding, read into the same objects as JSON.

`kubectl create configmap|secret|namespace|...` and `kubectl auth can-i` send nothing else. Only reading is served, only
for built-in kinds, and answers are JSON: every client that sends protobuf accepts that. The field numbers are those of
k8s.io/api's generated.proto; a field that a table does not know is skipped.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from slipway_local.apiserver import errors

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"

Field = tuple[str, Callable[[Any], Any]]
Table = dict[int, Field]


# --- the wire -----------------------------------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("truncated number")
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return result, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: an integer or the bytes of a string or message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("truncated field")
            yield number, data[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")


def _text(value: Any) -> str:
    if not isinstance(value, bytes):
        raise ValueError("expected a string")
    return value.decode()


def _bytes(value: Any) -> str:
    return base64.b64encode(value).decode()


def _int(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("expected a number")
    return value - 2**64 if value >= 2**63 else value


def _bool(value: Any) -> bool:
    return bool(value)


def _message(table: Table) -> Callable[[Any], dict[str, Any]]:
    def read(data: Any) -> dict[str, Any]:
        if not isinstance(data, bytes):
            raise ValueError("expected a message")
        result: dict[str, Any] = {}
        for number, value in _fields(data):
            if number not in table:
                continue
            name, convert = table[number]
            converted = convert(value)
            if name.endswith("[]"):
                result.setdefault(name[:-2], []).append(converted)
            elif name.endswith("{}"):
                result.setdefault(name[:-2], {}).update(converted)
            elif converted not in ("", {}, None):
                # Go writes unset strings and structs as empty ones.
                result[name] = converted
        return result

    return read


def _entry(convert: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def read(data: Any) -> dict[str, Any]:
        parts = dict(_fields(data))
        return {_text(parts.get(1, b"")): convert(parts.get(2, b""))}

    return read


def _time(*, micro: bool) -> Callable[[Any], str | None]:
    def read(data: Any) -> str | None:
        parts = dict(_fields(data))
        if not parts:
            return None
        moment = datetime.fromtimestamp(_int(parts.get(1, 0)), UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{moment}.{parts.get(2, 0) // 1000:06d}Z" if micro else f"{moment}Z"

    return read


# --- the messages -------------------------------------------------------------------------------------------------

_STRINGS, _BYTES = _entry(_text), _entry(_bytes)
_TIME, _MICRO_TIME = _time(micro=False), _time(micro=True)

_OWNER = _message(
    {
        1: ("kind", _text),
        3: ("name", _text),
        4: ("uid", _text),
        5: ("apiVersion", _text),
        6: ("controller", _bool),
        7: ("blockOwnerDeletion", _bool),
    }
)
_METADATA: Field = (
    "metadata",
    _message(
        {
            1: ("name", _text),
            2: ("generateName", _text),
            3: ("namespace", _text),
            5: ("uid", _text),
            6: ("resourceVersion", _text),
            11: ("labels{}", _STRINGS),
            12: ("annotations{}", _STRINGS),
            13: ("ownerReferences[]", _OWNER),
            14: ("finalizers[]", _text),
        }
    ),
)
_REFERENCE = _message(
    {
        1: ("kind", _text),
        2: ("namespace", _text),
        3: ("name", _text),
        4: ("uid", _text),
        5: ("apiVersion", _text),
        6: ("resourceVersion", _text),
        7: ("fieldPath", _text),
    }
)
_LEASE_SPEC = _message(
    {
        1: ("holderIdentity", _text),
        2: ("leaseDurationSeconds", _int),
        3: ("acquireTime", _MICRO_TIME),
        4: ("renewTime", _MICRO_TIME),
        5: ("leaseTransitions", _int),
    }
)
_RESOURCE_ATTRIBUTES = _message(
    {
        number: (name, _text)
        for number, name in enumerate(
            ("namespace", "verb", "group", "version", "resource", "subresource", "name"), start=1
        )
    }
)
_ACCESS_SPEC = _message(
    {
        1: ("resourceAttributes", _RESOURCE_ATTRIBUTES),
        2: ("nonResourceAttributes", _message({1: ("path", _text), 2: ("verb", _text)})),
    }
)

_KINDS: dict[str, Table] = {
    "Namespace": {
        1: _METADATA,
        2: ("spec", _message({1: ("finalizers[]", _text)})),
        3: ("status", _message({1: ("phase", _text)})),
    },
    "ConfigMap": {1: _METADATA, 2: ("data{}", _STRINGS), 3: ("binaryData{}", _BYTES), 4: ("immutable", _bool)},
    "Secret": {
        1: _METADATA,
        2: ("data{}", _BYTES),
        3: ("type", _text),
        4: ("stringData{}", _STRINGS),
        5: ("immutable", _bool),
    },
    "ServiceAccount": {
        1: _METADATA,
        2: ("secrets[]", _REFERENCE),
        3: ("imagePullSecrets[]", _message({1: ("name", _text)})),
        4: ("automountServiceAccountToken", _bool),
    },
    "PriorityClass": {
        1: _METADATA,
        2: ("value", _int),
        3: ("globalDefault", _bool),
        4: ("description", _text),
        5: ("preemptionPolicy", _text),
    },
    "Lease": {1: _METADATA, 2: ("spec", _LEASE_SPEC)},
    "Event": {
        1: _METADATA,
        2: ("involvedObject", _REFERENCE),
        3: ("reason", _text),
        4: ("message", _text),
        5: ("source", _message({1: ("component", _text), 2: ("host", _text)})),
        6: ("firstTimestamp", _TIME),
        7: ("lastTimestamp", _TIME),
        8: ("count", _int),
        9: ("type", _text),
        10: ("eventTime", _MICRO_TIME),
        11: ("series", _message({1: ("count", _int), 2: ("lastObservedTime", _MICRO_TIME)})),
        12: ("action", _text),
        13: ("related", _REFERENCE),
        14: ("reportingComponent", _text),
        15: ("reportingInstance", _text),
    },
    "SelfSubjectAccessReview": {1: _METADATA, 2: ("spec", _ACCESS_SPEC)},
    "SelfSubjectRulesReview": {1: _METADATA, 2: ("spec", _message({1: ("namespace", _text)}))},
    "SelfSubjectReview": {1: _METADATA},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", _int),
        2: ("preconditions", _message({1: ("uid", _text), 2: ("resourceVersion", _text)})),
        3: ("orphanDependents", _bool),
        4: ("propagationPolicy", _text),
        5: ("dryRun[]", _text),
    },
}
_ENVELOPE = _message({1: ("type", _message({1: ("apiVersion", _text), 2: ("kind", _text)})), 2: ("raw", lambda v: v)})


def decode_protobuf(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises ApiError: 400 for a malformed body, 415 for a kind that has no table."""
    if not body.startswith(_MAGIC):
        raise errors.bad_request(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
        )
    try:
        envelope = _ENVELOPE(body[len(_MAGIC) :])
        type_ = envelope.get("type") or {}
        table = _KINDS.get(type_.get("kind", ""))
        if table is None:
            raise errors.unsupported_media_type(MEDIA_TYPE, ["application/json", "application/yaml"])
        return {**type_, **_message(table)(envelope.get("raw", b""))}
    except (ValueError, OverflowError) as failure:
        raise errors.bad_request(f"malformed protobuf: {failure}") from None
