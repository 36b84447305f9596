"""Errors in OpenAI's shape: {"error": {message, type, param, code}}, with the HTTP status that goes with them."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that is answered with an error. `retry_after` in seconds."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def to_wire(self) -> dict[str, Any]:
        """As it travels from an engine's replica to the router."""
        return {**self.body()["error"], "status": self.status, "retry_after": self.retry_after}

    @classmethod
    def of_wire(cls, wire: dict[str, Any]) -> ApiError:
        """The inverse of `to_wire`."""
        return cls(
            int(wire["status"]),
            str(wire["code"]),
            str(wire["message"]),
            param=wire.get("param"),
            retry_after=wire.get("retry_after"),
        )


def of_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request, by the name of its parameter."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "str", "function-")))
    if first["type"] == "extra_forbidden":
        return ApiError(400, "unsupported_parameter", f"the parameter {where} is not supported", param=where)
    return ApiError(400, "invalid_parameter", f"{where}: {first['msg']}", param=where or None)
