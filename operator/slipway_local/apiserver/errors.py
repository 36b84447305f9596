"""Errors as the API answers them: Status objects with kube-apiserver's codes, reasons and wording.

Field errors are collected, never raised one by one, so that a user sees everything that is wrong at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

# CauseType of metav1, by the words that open the message.
_CAUSES = {
    "Required value": "FieldValueRequired",
    "Duplicate value": "FieldValueDuplicate",
    "Invalid value": "FieldValueInvalid",
    "Unsupported value": "FieldValueNotSupported",
    "Forbidden": "FieldValueForbidden",
    "Too long": "FieldValueTooLong",
    "Too many": "FieldValueTooMany",
}


class _Omitted:
    """Marks an error that shows no value."""


OMITTED = _Omitted()


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field. `blocking` errors keep CEL rules from being evaluated."""

    type: str
    field: str
    value: Any = OMITTED
    detail: str = ""
    blocking: bool = False

    @property
    def body(self) -> str:
        """The message without the field's path."""
        text = self.type if isinstance(self.value, _Omitted) else f"{self.type}: {_show(self.value)}"
        return f"{text}: {self.detail}" if self.detail else text

    def __str__(self) -> str:
        return f"{self.field}: {self.body}"

    def cause(self) -> dict[str, str]:
        """The error as a StatusCause."""
        reason = "FieldValueTypeInvalid" if self.blocking and self.type == "Invalid value" else _CAUSES[self.type]
        return {"reason": reason, "message": self.body, "field": self.field}


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return orjson.dumps(value).decode()
    if isinstance(value, float):
        return f"{value:g}"
    return orjson.dumps(value).decode()


def required(field: str, detail: str = "") -> FieldError:
    """A field that must be there is not."""
    return FieldError("Required value", field, detail=detail, blocking=True)


def invalid(field: str, value: Any, detail: str) -> FieldError:
    """A value that breaks a rule."""
    return FieldError("Invalid value", field, value, detail)


def invalid_type(field: str, value: Any, detail: str) -> FieldError:
    """A value of the wrong type."""
    return FieldError("Invalid value", field, value, detail, blocking=True)


def not_supported(field: str, value: Any, allowed: list[Any]) -> FieldError:
    """A value outside an enumeration."""
    shown = ", ".join(_show(v if isinstance(v, str) else orjson.dumps(v).decode()) for v in allowed)
    return FieldError("Unsupported value", field, value, f"supported values: {shown}", blocking=True)


def too_long(field: str, maximum: int) -> FieldError:
    """A string or payload over its limit."""
    unit = "byte" if maximum == 1 else "bytes"
    return FieldError("Too long", field, detail=f"may not be more than {maximum} {unit}", blocking=True)


def too_many(field: str, actual: int, maximum: int) -> FieldError:
    """A list or map over its limit."""
    unit = "item" if maximum == 1 else "items"
    return FieldError("Too many", field, actual, f"must have at most {maximum} {unit}", blocking=True)


def duplicate(field: str, value: Any) -> FieldError:
    """A value that must be unique and is not."""
    return FieldError("Duplicate value", field, value)


def forbidden_field(field: str, detail: str) -> FieldError:
    """A value that may not be set here."""
    return FieldError("Forbidden", field, detail=detail)


class ApiError(Exception):
    """An answer that is not a success; `status()` is its body."""

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.continue_token: str | None = None

    def status(self) -> dict[str, Any]:
        """The metav1.Status object."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": self.continue_token} if self.continue_token else {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            status["reason"] = self.reason
        if self.details:
            status["details"] = self.details
        status["code"] = self.code
        return status


def qualified(plural: str, group: str) -> str:
    """`trainjobs.slipway.dev`; just the plural in the core group."""
    return f"{plural}.{group}" if group else plural


def _details(plural: str, group: str, name: str, **more: Any) -> dict[str, Any]:
    details: dict[str, Any] = {"name": name}
    if group:
        details["group"] = group
    details["kind"] = plural
    return details | more


def bad_request(message: str) -> ApiError:
    """400."""
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    """401."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(plural: str, group: str, name: str, why: str, causes: list[dict[str, str]] | None = None) -> ApiError:
    """403."""
    more = {"causes": causes} if causes else {}
    message = f'{qualified(plural, group)} "{name}" is forbidden: {why}'
    return ApiError(403, "Forbidden", message, _details(plural, group, name, **more))


def not_found(plural: str, group: str, name: str) -> ApiError:
    """404 for an object."""
    message = f'{qualified(plural, group)} "{name}" not found'
    return ApiError(404, "NotFound", message, _details(plural, group, name))


def no_such_path() -> ApiError:
    """404 for a path that nothing serves."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def method_not_allowed() -> ApiError:
    """405."""
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def already_exists(plural: str, group: str, name: str) -> ApiError:
    """409 for a name that is taken."""
    message = f'{qualified(plural, group)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(plural, group, name))


def conflict(plural: str, group: str, name: str, why: str | None = None) -> ApiError:
    """409 for a write on an outdated or wrong object."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(plural, group, name))


def apply_conflict(causes: list[dict[str, str]], message: str) -> ApiError:
    """409 for server-side apply: somebody else owns a field."""
    return ApiError(409, "Conflict", message, {"causes": causes})


def expired(message: str) -> ApiError:
    """410: the resource version or continue token is too old."""
    return ApiError(410, "Expired", message)


def too_large(message: str) -> ApiError:
    """413."""
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: {message}")


def unsupported_media_type(media_type: str, allowed: list[str]) -> ApiError:
    """415."""
    message = (
        f"the body of the request was in an unknown format - accepted media types include: {', '.join(allowed)}"
        if media_type
        else f"no media type was given - accepted media types include: {', '.join(allowed)}"
    )
    return ApiError(415, "UnsupportedMediaType", message, {})


def not_acceptable(allowed: list[str]) -> ApiError:
    """406."""
    message = f"only the following media types are accepted: {', '.join(allowed)}"
    return ApiError(406, "NotAcceptable", message, {})


def unprocessable(kind: str, group: str, name: str, errors: list[FieldError]) -> ApiError:
    """422 with every field error as a cause."""
    texts = list(dict.fromkeys(str(e) for e in errors))
    joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details = _details(kind, group, name, causes=[e.cause() for e in errors])
    return ApiError(422, "Invalid", f'{qualified(kind, group)} "{name}" is invalid: {joined}', details)


def internal(message: str) -> ApiError:
    """500."""
    return ApiError(500, "InternalError", f"Internal error occurred: {message}", {"causes": [{"message": message}]})


def untyped_failure(message: str) -> ApiError:
    """500 without a reason, as kube-apiserver answers an apply whose body does not fit the schema."""
    return ApiError(500, "", message)


def unavailable(message: str) -> ApiError:
    """503."""
    return ApiError(503, "ServiceUnavailable", message)


def too_large_version(asked: int, current: int) -> ApiError:
    """504: a version that this server has not reached."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return ApiError(504, "Timeout", message, details)
