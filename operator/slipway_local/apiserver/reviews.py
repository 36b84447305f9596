"""Questions about the one who asks. There is one user, who may do everything."""

from __future__ import annotations

from typing import Any

from slipway_local.apiserver import errors
from slipway_local.apiserver.admission import check_type
from slipway_local.apiserver.registry import Kind

USER = "slipway-local"
_EVERYTHING = {
    "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
    "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    "incomplete": False,
}


def answer(kind: Kind, obj: Any) -> dict[str, Any]:
    """The review with its status filled in. Raises ApiError 400 or 422 for a body that asks nothing."""
    check_type(kind, obj)
    spec = obj.get("spec") or {}
    if kind.kind == "SelfSubjectAccessReview" and ("resourceAttributes" in spec) == ("nonResourceAttributes" in spec):
        detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        raise errors.unprocessable("", kind.group, "", [errors.invalid("spec", None, detail)])
    status: dict[str, Any] = {"allowed": True, "reason": "the local control plane has one user"}
    if kind.kind == "SelfSubjectRulesReview":
        status = _EVERYTHING
    elif kind.kind == "SelfSubjectReview":
        status = {"userInfo": {"username": USER, "groups": ["system:masters", "system:authenticated"]}}
    return {**obj, "status": status}
