"""core/v1: the part that kubectl, the operator and KubeRay's users touch.

Schemas cover the documented fields; descriptions are ours and short.
"""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Any

from slipway_local.apiserver import errors
from slipway_local.apiserver.errors import FieldError
from slipway_local.apiserver.fields import (
    AGE,
    ANY,
    CONDITION,
    QUANTITY,
    REFERENCE,
    created,
    flag,
    int32,
    list_of,
    map_of,
    named_columns,
    object_of,
    path_reader,
    text,
    time,
)
from slipway_local.apiserver.registry import Kind
from slipway_local.apiserver.tables import NAME_COLUMN, Columns, age, column

_MAX_PAYLOAD = 1024 * 1024


def _prepare_namespace(new: dict[str, Any], old: dict[str, Any] | None) -> None:
    if old is None:
        new["spec"] = {"finalizers": ["kubernetes"]}
        new["status"] = {"phase": "Active"}
        new["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = new["metadata"]["name"]


_NAMESPACE = Kind(
    group="",
    version="v1",
    kind="Namespace",
    plural="namespaces",
    singular="namespace",
    short_names=("ns",),
    namespaced=False,
    status=True,
    label_names=True,
    schema=object_of(
        "A scope for names.",
        spec=object_of(
            "How the namespace behaves.", finalizers=list_of(text("Name."), "What must be done before it goes.")
        ),
        status=object_of(
            "How the namespace is.",
            phase=text("Active or Terminating."),
            conditions=list_of(CONDITION, "What keeps it from going.", "type"),
        ),
    ),
    selectable={"status.phase": path_reader("status", "phase"), "name": path_reader("metadata", "name")},
    prepare=_prepare_namespace,
    columns=named_columns(
        lambda obj, now: [obj.get("status", {}).get("phase"), created(obj, now)],
        column("Status", description="Active or Terminating."),
        AGE,
    ),
)


def _check_immutable_flag(new: dict[str, Any], old: dict[str, Any] | None, *fields: str) -> list[FieldError]:
    if old is None or not old.get("immutable"):
        return []
    changed = [name for name in fields if (new.get(name) or {}) != (old.get(name) or {})]
    if not new.get("immutable"):
        changed.insert(0, "immutable")
    return [errors.forbidden_field(name, "field is immutable when `immutable` is set") for name in changed]


def _check_keys(data: dict[str, Any], field: str) -> list[FieldError]:
    found: list[FieldError] = []
    for key in data:
        plain = key.replace("-", "").replace("_", "").replace(".", "")
        if not key or len(key) > 253 or key in (".", "..") or (plain and not plain.isalnum()) or not key.isascii():
            detail = (
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
                "'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
            )
            found.append(errors.invalid(f"{field}[{key}]", key, detail))
    return found


def _check_config_map(new: dict[str, Any], old: dict[str, Any] | None) -> list[FieldError]:
    data, binary = new.get("data") or {}, new.get("binaryData") or {}
    found = _check_keys(data, "data") + _check_keys(binary, "binaryData")
    found += [
        errors.invalid(f"data[{key}]", key, "duplicate of key present in binaryData") for key in data if key in binary
    ]
    if sum(len(k) + len(v) for part in (data, binary) for k, v in part.items()) > _MAX_PAYLOAD:
        found.append(errors.too_long("", _MAX_PAYLOAD))
    return found + _check_immutable_flag(new, old, "data", "binaryData")


_CONFIG_MAP = Kind(
    group="",
    version="v1",
    kind="ConfigMap",
    plural="configmaps",
    singular="configmap",
    short_names=("cm",),
    namespaced=True,
    schema=object_of(
        "Configuration that is not secret.",
        data=map_of(text("A value."), "Values by key, as text."),
        binaryData=map_of(text("A value.", format="byte"), "Values by key, base64-encoded."),
        immutable=flag("Whether the data can no longer be changed."),
    ),
    check=_check_config_map,
    columns=named_columns(
        lambda obj, now: [len(obj.get("data") or {}) + len(obj.get("binaryData") or {}), created(obj, now)],
        column("Data", "integer", "Number of keys."),
        AGE,
    ),
)


def _prepare_secret(new: dict[str, Any], old: dict[str, Any] | None) -> None:
    plain = new.pop("stringData", None)
    if plain:
        new["data"] = (new.get("data") or {}) | {k: base64.b64encode(v.encode()).decode() for k, v in plain.items()}
    new.setdefault("type", "Opaque")


def _check_secret(new: dict[str, Any], old: dict[str, Any] | None) -> list[FieldError]:
    data = new.get("data") or {}
    found = _check_keys(data, "data")
    total = 0
    for key, value in data.items():
        try:
            total += len(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            found.append(errors.invalid(f"data[{key}]", "<secret contents redacted>", "must be base64"))
    if total > _MAX_PAYLOAD:
        found.append(errors.too_long("data", _MAX_PAYLOAD))
    if old is not None and new.get("type") != old.get("type"):
        found.append(errors.invalid("type", new.get("type"), "field is immutable"))
    return found + _check_immutable_flag(new, old, "data")


_SECRET = Kind(
    group="",
    version="v1",
    kind="Secret",
    plural="secrets",
    singular="secret",
    namespaced=True,
    schema=object_of(
        "Something that only those who need it should read.",
        data=map_of(text("A value.", format="byte"), "Values by key, base64-encoded."),
        stringData=map_of(text("A value."), "Values by key, as text; written into data and never read back."),
        type=text("What the secret is for. Cannot be changed."),
        immutable=flag("Whether the data can no longer be changed."),
    ),
    selectable={"type": path_reader("type")},
    prepare=_prepare_secret,
    check=_check_secret,
    columns=named_columns(
        lambda obj, now: [obj.get("type"), len(obj.get("data") or {}), created(obj, now)],
        column("Type", description="What the secret is for."),
        column("Data", "integer", "Number of keys."),
        AGE,
    ),
)

_SERVICE_ACCOUNT = Kind(
    group="",
    version="v1",
    kind="ServiceAccount",
    plural="serviceaccounts",
    singular="serviceaccount",
    short_names=("sa",),
    namespaced=True,
    schema=object_of(
        "An identity for processes. This server gives it no tokens.",
        secrets=list_of(REFERENCE, "Secrets that its pods may use.", "name"),
        imagePullSecrets=list_of(
            object_of("A reference by name.", name=text("Name of the secret.")), "Secrets to pull images with."
        ),
        automountServiceAccountToken=flag("Whether pods get a token mounted."),
    ),
    columns=named_columns(
        lambda obj, now: [created(obj, now)],
        AGE,
    ),
)


def _prepare_event(new: dict[str, Any], old: dict[str, Any] | None) -> None:
    new.setdefault("reportingComponent", "")
    new.setdefault("reportingInstance", "")


def _check_event(new: dict[str, Any], old: dict[str, Any] | None) -> list[FieldError]:
    where, own = new.get("involvedObject", {}).get("namespace", ""), new["metadata"].get("namespace", "")
    if where != own and not (not where and own == "default"):
        return [errors.invalid("involvedObject.namespace", where, "does not match event.namespace")]
    return []


def _event_cells(obj: dict[str, Any], now: datetime) -> list[Any]:
    series, about, source = obj.get("series") or {}, obj.get("involvedObject") or {}, obj.get("source") or {}
    last = series.get("lastObservedTime") or obj.get("lastTimestamp") or obj.get("eventTime")
    first = obj.get("firstTimestamp") or obj.get("eventTime")
    created = obj["metadata"].get("creationTimestamp")
    count = series.get("count") or obj.get("count") or 1
    component = source.get("component") or obj.get("reportingComponent", "")
    host = source.get("host") or obj.get("reportingInstance", "")
    return [
        age(last or created, now),
        obj.get("type"),
        obj.get("reason"),
        f"{about.get('kind', '').lower()}/{about.get('name', '')}",
        about.get("fieldPath", ""),
        f"{component}, {host}" if host else component,
        (obj.get("message") or "").strip(),
        age(first or created, now),
        count,
        obj["metadata"]["name"],
    ]


_EVENT = Kind(
    group="",
    version="v1",
    kind="Event",
    plural="events",
    singular="event",
    short_names=("ev",),
    namespaced=True,
    create_on_update=True,
    schema=object_of(
        "Something that happened to an object. Forgotten an hour after it was last written.",
        involvedObject=REFERENCE,
        related=REFERENCE,
        reason=text("Why, in one word."),
        message=text("What happened, for people."),
        type=text("Normal or Warning."),
        action=text("What was done."),
        count=int32("How often it happened."),
        firstTimestamp=time("When it happened first."),
        lastTimestamp=time("When it happened last."),
        eventTime=time("When it happened."),
        source=object_of(
            "Who says so.", component=text("Component that reports it."), host=text("Node that it runs on.")
        ),
        series=object_of("Repetitions.", count=int32("How often."), lastObservedTime=time("When it was last seen.")),
        reportingComponent=text("Controller that reports it."),
        reportingInstance=text("Instance of the controller."),
    )
    | {"required": ["involvedObject"]},
    selectable={
        **{
            f"involvedObject.{name}": path_reader("involvedObject", name)
            for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
        },
        "reason": path_reader("reason"),
        "type": path_reader("type"),
        "reportingComponent": path_reader("reportingComponent"),
        "source": path_reader("source", "component"),
    },
    prepare=_prepare_event,
    check=_check_event,
    columns=Columns(
        [
            column("Last Seen", description="Time since it happened last."),
            column("Type", description="Normal or Warning."),
            column("Reason", description="Why, in one word."),
            column("Object", description="What it happened to."),
            column("Subobject", description="The part that it happened to.", priority=1),
            column("Source", description="Who says so.", priority=1),
            column("Message", description="What happened."),
            column("First Seen", description="Time since it happened first.", priority=1),
            column("Count", "integer", "How often it happened.", priority=1),
            {**NAME_COLUMN, "priority": 1},
        ],
        _event_cells,
    ),
)


def _node_cells(obj: dict[str, Any], now: datetime) -> list[Any]:
    status = obj.get("status") or {}
    ready = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), None)
    state = "Unknown" if ready is None else "Ready" if ready.get("status") == "True" else "NotReady"
    if (obj.get("spec") or {}).get("unschedulable"):
        state += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    roles = sorted(key[len(prefix) :] for key in labels if key.startswith(prefix))
    version = (status.get("nodeInfo") or {}).get("kubeletVersion", "")
    return [state, ",".join(roles) or "<none>", created(obj, now), version]


_NODE = Kind(
    group="",
    version="v1",
    kind="Node",
    plural="nodes",
    singular="node",
    short_names=("no",),
    namespaced=False,
    status=True,
    schema=object_of(
        "A machine that runs work.",
        spec=object_of(
            "How the machine is to be used.",
            unschedulable=flag("Whether new work stays away."),
            providerID=text("Identity at the provider."),
            podCIDR=text("Address range of its pods."),
            podCIDRs=list_of(text("A range."), "Address ranges of its pods.", unique=True),
            taints=list_of(
                object_of(
                    "A taint.",
                    key=text("Key."),
                    value=text("Value."),
                    effect=text("NoSchedule, PreferNoSchedule or NoExecute."),
                    timeAdded=time("When it was added."),
                ),
                "What keeps work away.",
            ),
        ),
        status=object_of(
            "What the machine is and has.",
            capacity=map_of(QUANTITY, "What it has."),
            allocatable=map_of(QUANTITY, "What work may use."),
            conditions=list_of(CONDITION, "How it is.", "type"),
            addresses=list_of(
                object_of("An address.", type=text("Kind of address."), address=text("The address.")),
                "Where it is.",
                "type",
            ),
            nodeInfo={**ANY, "type": "object", "description": "What runs on it."},
            images=list_of({**ANY, "type": "object"}, "Images that it holds."),
            phase=text("No longer set."),
            daemonEndpoints={**ANY, "type": "object", "description": "Ports of its daemons."},
        ),
    ),
    selectable={"spec.unschedulable": path_reader("spec", "unschedulable")},
    columns=named_columns(
        _node_cells,
        column("Status", description="Ready or not."),
        column("Roles", description="What it is for."),
        AGE,
        column("Version", description="Version of what runs there."),
    ),
)


CORE_KINDS = (_NAMESPACE, _CONFIG_MAP, _SECRET, _SERVICE_ACCOUNT, _EVENT, _NODE)
