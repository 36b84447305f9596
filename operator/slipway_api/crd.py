"""CustomResourceDefinitions, generated from the pydantic models.

The output is a structural schema as kube-apiserver demands it
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema):
no $ref, no title, no nullable unions; every object has its type; defaults are written out so that a stored object is
complete; CEL rules come from the classes' `cel_rules`. Nothing here reads or writes a file.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from slipway_api import GROUP, VERSION
from slipway_api.base import ApiModel, Rule
from slipway_api.deployment import Deployment
from slipway_api.evaljob import EvalJob
from slipway_api.trainjob import TrainJob

_SCALARS: dict[type, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
}
# kubectl explain prints int64 numbers as <integer>; 32-bit clients need to be told when a value may be larger.
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class PrinterColumn:
    """One column of `kubectl get`."""

    name: str
    type: str
    json_path: str
    description: str
    priority: int = 0

    def to_wire(self) -> dict[str, Any]:
        """The column as apiextensions.k8s.io/v1 wants it."""
        column = {
            "name": self.name,
            "type": self.type,
            "jsonPath": self.json_path,
            "description": self.description,
        }
        return column | ({"priority": self.priority} if self.priority else {})


@dataclass(frozen=True)
class Kind:
    """A custom resource: its model, its names and its columns."""

    model: type[ApiModel]
    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    columns: tuple[PrinterColumn, ...]


TRAIN_JOB = Kind(
    model=TrainJob,
    kind="TrainJob",
    plural="trainjobs",
    singular="trainjob",
    short_names=("tj",),
    columns=(
        PrinterColumn("State", "string", ".status.state", "The conditions in one word."),
        PrinterColumn("Step", "string", ".status.progress.summary", "Optimizer steps done, of all."),
        PrinterColumn("Loss", "string", ".status.progress.loss", "Training loss of the last step."),
        PrinterColumn("Tokens/s", "integer", ".status.progress.tokensPerSecond", "Real tokens per second."),
        PrinterColumn("Attempt", "integer", ".status.attempt", "Number of the current attempt."),
        PrinterColumn("Strategy", "string", ".status.plan.strategy", "How the model is spread.", priority=1),
        PrinterColumn("Perplexity", "string", ".status.model.perplexity", "Held-out perplexity.", priority=1),
        PrinterColumn("Model", "string", ".status.model.uri", "Where the trained model is.", priority=1),
        PrinterColumn("Cost", "string", ".status.usage.cost", "What the attempts have cost.", priority=1),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp", "Time since creation."),
    ),
)

EVAL_JOB = Kind(
    model=EvalJob,
    kind="EvalJob",
    plural="evaljobs",
    singular="evaljob",
    short_names=("ej",),
    columns=(
        PrinterColumn("Model", "string", ".status.modelName", "The model that is measured."),
        PrinterColumn("Suites", "string", ".status.suitesSummary", "Suites done, of all."),
        PrinterColumn("Passed", "string", '.status.conditions[?(@.type=="Passed")].status', "Whether the gates hold."),
        PrinterColumn("Progress", "string", ".status.progress.summary", "Examples scored, of all."),
        PrinterColumn("State", "string", ".status.state", "The conditions in one word.", priority=1),
        PrinterColumn("Report", "string", ".status.results.report", "Where the HTML report is.", priority=1),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp", "Time since creation."),
    ),
)

DEPLOYMENT = Kind(
    model=Deployment,
    kind="Deployment",
    plural="deployments",
    singular="deployment",
    short_names=("sdeploy",),
    columns=(
        PrinterColumn(
            "Ready", "string", '.status.conditions[?(@.type=="Available")].status', "Whether the endpoint answers."
        ),
        PrinterColumn("Version", "string", ".status.version", "The stable version."),
        PrinterColumn("Weight", "string", ".status.weights", "Percent of the requests: stable/candidate."),
        PrinterColumn(
            "Gate", "string", '.status.conditions[?(@.type=="GatePassed")].status', "Whether the model may serve."
        ),
        PrinterColumn("URL", "string", ".status.url", "Base URL of the endpoint."),
        PrinterColumn("State", "string", ".status.state", "The conditions in one word.", priority=1),
        PrinterColumn("Model", "string", ".status.stable.source", "The model that answers.", priority=1),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp", "Time since creation."),
    ),
)

KINDS: tuple[Kind, ...] = (TRAIN_JOB, EVAL_JOB, DEPLOYMENT)


def crds() -> list[dict[str, Any]]:
    """Every CustomResourceDefinition (apiextensions.k8s.io/v1) of the group, complete and ready to apply."""
    return [crd(kind) for kind in KINDS]


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": list(kind.short_names),
                "categories": ["slipway"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _root_schema(kind.model)},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [column.to_wire() for column in kind.columns],
                }
            ],
        },
    }


def _root_schema(model: type[ApiModel]) -> dict[str, Any]:
    # The API server owns these three: a CRD may name them, and may only restrict metadata.name.
    schema = _object_schema(model, skip=("api_version", "kind", "metadata"))
    schema["properties"]["apiVersion"] = {
        "type": "string",
        "description": "APIVersion defines the versioned schema of this representation of an object.",
    }
    schema["properties"]["kind"] = {"type": "string", "description": "Kind is the REST resource of this object."}
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _object_schema(model: type[BaseModel], skip: tuple[str, ...] = ()) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if model.__doc__:
        schema["description"] = " ".join(model.__doc__.split())
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        alias = field.alias or name
        properties[alias] = _field_schema(field)
        if field.is_required():
            required.append(alias)
    if properties:
        schema["properties"] = properties
    if required:
        schema["required"] = required
    rules = model.cel_rules if issubclass(model, ApiModel) else ()
    if rules:
        schema["x-kubernetes-validations"] = [
            {"rule": rule.rule, "message": rule.message} | ({"fieldPath": rule.field_path} if rule.field_path else {})
            for rule in rules
        ]
    return schema


def _field_schema(field: FieldInfo) -> dict[str, Any]:
    schema = _type_schema(field.annotation)
    _constrain(schema, field.metadata)
    if isinstance(field.json_schema_extra, dict):
        schema.update(field.json_schema_extra)
    if field.description:
        schema["description"] = field.description
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is not PydanticUndefined and default is not None and not field.is_required():
        wire: Any = _written_out(schema, default) if isinstance(default, ApiModel) else default
        if wire != []:
            schema["default"] = wire
        elif _evaluated_by_rules(schema):
            schema["default"] = []
    return schema


def _written_out(schema: dict[str, Any], default: ApiModel) -> dict[str, Any]:
    """The default of an object whose fields all have defaults: all of them, from within.

    Where one of several optional objects is chosen by the default (an engine), that one as well.

    {} would become the same object, but the API server judges a default by the object's rules before it fills it in,
    and a rule may then miss a field that every stored object has.
    """
    properties, chosen = schema.get("properties", {}), default.to_wire()
    return {name: child["default"] for name, child in properties.items() if "default" in child} | {
        name: value
        for name, value in chosen.items()
        if isinstance(value, dict) and "default" not in properties.get(name, {})
    }


def _evaluated_by_rules(schema: dict[str, Any]) -> bool:
    """Whether an empty list is written out: spec lists are (rules may then call size()), keyed status lists are not."""
    return (
        schema.get("type") == "array"
        and "x-kubernetes-list-type" in schema
        and (schema["x-kubernetes-list-type"] == "atomic")
    )


def _type_schema(annotation: Any) -> dict[str, Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *metadata = get_args(annotation)
        schema = _type_schema(base)
        for item in metadata:
            if isinstance(item, FieldInfo):
                _constrain(schema, item.metadata)
                if isinstance(item.json_schema_extra, dict):
                    schema.update(item.json_schema_extra)
            else:
                _constrain(schema, [item])
        return schema
    if origin in (Union, types.UnionType):
        (inner,) = [arg for arg in get_args(annotation) if arg is not type(None)]
        return _type_schema(inner)
    if origin is Literal:
        values = list(get_args(annotation))
        return {**_SCALARS[type(values[0])], "enum": values}
    if origin is list:
        (item,) = get_args(annotation)
        return {"type": "array", "items": _type_schema(item), "x-kubernetes-list-type": "atomic"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _object_schema(annotation)
    return dict(_SCALARS[annotation])


def _constrain(schema: dict[str, Any], metadata: list[Any]) -> None:
    """Translate pydantic's constraints (annotated-types) into OpenAPI's."""
    array = schema.get("type") == "array"
    for item in metadata:
        if isinstance(item, Ge):
            schema["minimum"] = item.ge
        elif isinstance(item, Gt):
            schema["minimum"], schema["exclusiveMinimum"] = item.gt, True
        elif isinstance(item, Le):
            schema["maximum"] = item.le
        elif isinstance(item, Lt):
            schema["maximum"], schema["exclusiveMaximum"] = item.lt, True
        elif isinstance(item, MinLen):
            schema["minItems" if array else "minLength"] = item.min_length
        elif isinstance(item, MaxLen):
            schema["maxItems" if array else "maxLength"] = item.max_length
        elif getattr(item, "pattern", None):
            schema["pattern"] = item.pattern
        elif isinstance(item, Rule):
            schema.setdefault("x-kubernetes-validations", []).append({"rule": item.rule, "message": item.message})
    if schema.get("type") == "integer":
        schema["format"] = "int64" if schema.get("maximum", _INT32_MAX + 1) > _INT32_MAX else "int32"
