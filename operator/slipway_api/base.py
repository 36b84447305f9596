"""The base model, the constrained scalar types and the CEL rules that every API type is built from.

A class states its validity rules once, as CEL (`cel_rules`), a scalar type in its metadata; the CRD generator copies
them into `x-kubernetes-validations`, and the local API server and the command line evaluate the very same text.
No rule lives in a Python validator, because a real kube-apiserver could not run it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Rule(NamedTuple):
    """One CEL validation rule (KEP-2876). A rule that mentions `oldSelf` is a transition rule."""

    rule: str
    message: str
    field_path: str | None = None  # relative to the object that carries the rule, e.g. ".steps"


class ApiModel(BaseModel):
    """An object of the API: camelCase on the wire, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, validate_default=False
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = ()

    def to_wire(self) -> dict[str, Any]:
        """The JSON object as it travels: camelCase, unset optionals left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def exactly_one(*fields: str, message: str | None = None) -> Rule:
    """A rule: exactly one of these optional fields is present."""
    present = ", ".join(f"has(self.{field})" for field in fields)
    return Rule(
        rule=f"[{present}].exists_one(x, x)",
        message=message or f"exactly one of {', '.join(fields)} must be set",
    )


def at_most_one(*fields: str) -> Rule:
    """A rule: no two of these optional fields are present together."""
    present = ", ".join(f"has(self.{field})" for field in fields)
    return Rule(rule=f"[{present}].filter(x, x).size() <= 1", message=f"at most one of {', '.join(fields)} may be set")


def immutable(field: str) -> Rule:
    """A transition rule for a field that is always present (required or defaulted)."""
    return Rule(
        rule=f"self.{field} == oldSelf.{field}",
        message=f"{field} is immutable: create a new object to change it",
        field_path=f".{field}",
    )


def immutable_optional(field: str) -> Rule:
    """A transition rule for an optional field: it may not be added, removed or changed."""
    return Rule(
        rule=(f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"),
        message=f"{field} is immutable: create a new object to change it",
        # The path must name the object that carries the rule: KEP-2876 refuses a path to an absent optional field.
    )


# Every string has a maximum: the API server bounds the cost of a CEL rule by it.
Uri = Annotated[
    str,
    Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://[^\s\x00]+$|^/[^\s\x00]*$"),
    # What a manifest names is opened by the run, with the run's rights. These rules are the first wall, not the only
    # one: a DNS name may still resolve to any address, which the network policy of the run catches.
    Rule(
        r"!self.matches('(^|/)[.][.]?(/|$)') && !self.matches('(?i)%2e')",
        "must not contain '.' or '..' as a path segment: write the resolved path",
    ),
    Rule("!self.contains('::')", "must not chain file systems ('::') or name an IPv6 address: give one plain URI"),
    Rule(
        "!self.matches('(?i)^((file|local)://[^/]*)?/+(proc|sys|dev|(var/+)?run/+(secrets|slipway))(/|$)')"
        " || self.matches('^((file|local)://)?/dev/shm/.')",
        "must not name the process, device or secret directories of the machine that runs the job",
    ),
    # Two rules for one thing: the API server bounds the cost of each, and suites times sources are many.
    Rule(
        "!self.matches('(?i)^[a-z][a-z0-9+.-]*://([^/]*@)?(169[.]254[.]|127[.]|(0[.]){3}0|(100[.]){3}200)')",
        "must not name a loopback, link-local or metadata address",
    ),
    Rule(
        "!self.matches('(?i)^https?://([^/]*@)?((localhost|metadata([.][^/:]*)?)[.]?|0x[0-9a-f.]+|[0-9]+)([:/]|$)')"
        " && !self.contains('://[') && !self.contains('@[')",
        "must not name a loopback, link-local or metadata address",
    ),
]
Glob = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^/\x00][^\x00]*$")]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
# What is copied into a label's value (a LocalQueue's name): a DNS label.
LabelName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
ShortText = Annotated[str, Field(max_length=256)]
LongText = Annotated[str, Field(max_length=4096)]
Timestamp = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]

# The API conventions forbid floats (they do not survive a round trip in every language), so a rate or a weight is a
# decimal in a string: "3e-4", "0.1".
DECIMAL_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,12})?([eE][-+]?[0-9]{1,2})?$"
Decimal = Annotated[str, Field(max_length=32, pattern=DECIMAL_PATTERN)]

# A count of CPUs, bytes or GPUs (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/).
Quantity = Annotated[
    str,
    Field(
        max_length=32,
        pattern=r"^[0-9]{1,12}(\.[0-9]{1,9})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
    ),
]


def map_list(*keys: str, max_items: int) -> Any:
    """Field metadata for a list whose items are told apart by keys, so that two appliers can own different items."""
    return Field(
        max_length=max_items,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)},
    )
