"""The built-in kinds: core/v1 and what lies around it, and the objects that a fresh server holds."""

from __future__ import annotations

from typing import Any

from slipway_local.apiserver import crds, errors
from slipway_local.apiserver.core import CORE_KINDS
from slipway_local.apiserver.errors import FieldError
from slipway_local.apiserver.fields import (
    AGE,
    ANY,
    CONDITION,
    Schema,
    created,
    flag,
    int32,
    list_of,
    named_columns,
    object_of,
    text,
    time,
)
from slipway_local.apiserver.registry import Kind, finished
from slipway_local.apiserver.tables import NAME_COLUMN, Columns, column

SYSTEM_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_MAX_USER_PRIORITY = 1_000_000_000


_LEASE = Kind(
    group="coordination.k8s.io",
    version="v1",
    kind="Lease",
    plural="leases",
    singular="lease",
    namespaced=True,
    create_on_update=True,
    schema=object_of(
        "A claim to something, held by one at a time.",
        spec=object_of(
            "Who holds it and until when.",
            holderIdentity=text("Who holds it.", nullable=True),
            leaseDurationSeconds=int32("How long it may go without renewal.", minimum=1, nullable=True),
            acquireTime=time("When the holder got it."),
            renewTime=time("When the holder last renewed it."),
            leaseTransitions=int32("How often it has changed hands.", minimum=0, nullable=True),
            strategy=text("How a holder is chosen.", nullable=True),
            preferredHolder=text("Who should hold it.", nullable=True),
        ),
    ),
    columns=named_columns(
        lambda obj, now: [(obj.get("spec") or {}).get("holderIdentity"), created(obj, now)],
        column("Holder", description="Who holds it."),
        AGE,
    ),
)


def _check_priority_class(new: dict[str, Any], old: dict[str, Any] | None) -> list[FieldError]:
    found: list[FieldError] = []
    name, value = new["metadata"].get("name", ""), new.get("value", 0)
    if name.startswith("system-") and SYSTEM_PRIORITIES.get(name) != value:
        detail = "priority class names with 'system-' prefix are reserved for system use only"
        found.append(errors.forbidden_field("metadata.name", detail))
    elif not name.startswith("system-") and value > _MAX_USER_PRIORITY:
        detail = f"maximum allowed value of a user defined priority is {_MAX_USER_PRIORITY}"
        found.append(errors.forbidden_field("value", detail))
    if old is not None and value != old.get("value", 0):
        found.append(errors.forbidden_field("value", "may not be changed in an update."))
    return found


_PRIORITY_CLASS = Kind(
    group="scheduling.k8s.io",
    version="v1",
    kind="PriorityClass",
    plural="priorityclasses",
    singular="priorityclass",
    short_names=("pc",),
    namespaced=False,
    schema=object_of(
        "A name for a priority.",
        value=int32("The priority; higher goes first. Cannot be changed.", default=0),
        globalDefault=flag("Whether it counts where no class is named."),
        description=text("When to use it."),
        preemptionPolicy=text(
            "Whether others make way.", enum=["PreemptLowerPriority", "Never"], default="PreemptLowerPriority"
        ),
    ),
    check=_check_priority_class,
    columns=named_columns(
        lambda obj, now: [
            obj.get("value", 0),
            bool(obj.get("globalDefault")),
            created(obj, now),
            obj.get("preemptionPolicy"),
        ],
        column("Value", "integer", "The priority."),
        column("Global-Default", "boolean", "Whether it counts where no class is named."),
        AGE,
        column("PreemptionPolicy", description="Whether others make way.", priority=1),
    ),
)

_CRD = Kind(
    group="apiextensions.k8s.io",
    version="v1",
    kind="CustomResourceDefinition",
    plural="customresourcedefinitions",
    singular="customresourcedefinition",
    short_names=("crd", "crds"),
    categories=("api-extensions",),
    namespaced=False,
    status=True,
    generations=True,
    schema=object_of(
        "A kind that somebody brings along.",
        spec=object_of(
            "What the kind is.",
            group=text("API group."),
            scope=text("Namespaced or Cluster.", enum=["Namespaced", "Cluster"]),
            names=object_of(
                "What it is called.",
                kind=text("CamelCase name of one."),
                listKind=text("CamelCase name of a list."),
                plural=text("Name in paths."),
                singular=text("Name of one, for people."),
                shortNames=list_of(text("A short name."), "Short names."),
                categories=list_of(text("A category."), "Groups that kubectl get accepts for it."),
            ),
            versions=list_of(
                object_of(
                    "One version.",
                    name=text("Name of the version."),
                    served=flag("Whether it is served."),
                    storage=flag("Whether objects are stored in it."),
                    deprecated=flag("Whether its use is discouraged."),
                    deprecationWarning=text("What to say to those who use it."),
                    schema=object_of("Its schema.", openAPIV3Schema={**ANY, "type": "object"}),
                    subresources=object_of(
                        "Endpoints of their own.",
                        status={**ANY, "type": "object", "description": "Status is written apart."},
                        scale={**ANY, "type": "object", "description": "Not served here."},
                    ),
                    additionalPrinterColumns=list_of(
                        object_of(
                            "One column of kubectl get.",
                            name=text("Heading."),
                            type=text("integer, number, string, boolean or date."),
                            format=text("Format of the value."),
                            description=text("What it shows."),
                            priority=int32("Above zero: only with -o wide."),
                            jsonPath=text("Where the value is."),
                        ),
                        "Columns of kubectl get.",
                    ),
                    selectableFields=list_of(
                        object_of("A field.", jsonPath=text("Where it is.")), "Fields for field selectors."
                    ),
                ),
                "Versions, in order of preference.",
            ),
            conversion={**ANY, "type": "object", "description": "How versions are converted; only None is served."},
            preserveUnknownFields=flag("Must be false."),
        ),
        status=object_of(
            "What has become of it.",
            conditions=list_of(CONDITION, "NamesAccepted, Established, Terminating.", "type"),
            acceptedNames={**ANY, "type": "object", "description": "Names in use."},
            storedVersions=list_of(text("A version."), "Versions that objects were stored in."),
        ),
    )
    | {"required": ["spec"]},
    prepare=crds.prepare,
    check=crds.check,
    columns=Columns(
        [NAME_COLUMN, column("Created At", "date", "When it was created.")],
        lambda obj, now: [obj["metadata"]["name"], obj["metadata"].get("creationTimestamp")],
    ),
)


def _review(group: str, kind: str, plural: str, spec: Schema) -> Kind:
    return Kind(
        group=group,
        version="v1",
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        namespaced=False,
        verbs=("create",),
        schema=object_of(
            "A question about the one who asks.",
            spec=spec,
            status={**ANY, "type": "object", "description": "The answer."},
        ),
        columns=named_columns(lambda obj, now: []),
    )


_REVIEWS = (
    _review("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews", {**ANY, "type": "object"}),
    _review("authorization.k8s.io", "SelfSubjectRulesReview", "selfsubjectrulesreviews", {**ANY, "type": "object"}),
    _review("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", {**ANY, "type": "object"}),
)


def builtin_kinds() -> list[Kind]:
    """Every built-in kind, ready to serve."""
    kinds = (
        *CORE_KINDS,
        _LEASE,
        _PRIORITY_CLASS,
        _CRD,
        *_REVIEWS,
    )
    return [finished(kind) for kind in kinds]


def initial_objects() -> list[tuple[str, dict[str, Any]]]:
    """(plural, object) of what a fresh server holds."""
    namespaces = [
        ("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for name in SYSTEM_NAMESPACES
    ]
    priorities = [
        (
            "priorityclasses",
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": name},
                "value": value,
                "description": "For what the machine itself needs.",
            },
        )
        for name, value in SYSTEM_PRIORITIES.items()
    ]
    return [*namespaces, *priorities]
