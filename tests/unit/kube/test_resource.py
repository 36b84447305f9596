"""Names, paths and errors: what the API calls things."""

from __future__ import annotations

import pytest

from slipway_operator.kube import errors
from slipway_operator.kube.resource import (
    LEASES,
    NAMESPACES,
    SECRETS,
    TRAINJOBS,
    Key,
    at_least,
    controller_of,
    key_of,
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (TRAINJOBS.path(), "/apis/slipway.dev/v1alpha1/trainjobs"),
        (TRAINJOBS.path("a", "b", "status"), "/apis/slipway.dev/v1alpha1/namespaces/a/trainjobs/b/status"),
        (SECRETS.path("a"), "/api/v1/namespaces/a/secrets"),
        (NAMESPACES.path("ignored", "x"), "/api/v1/namespaces/x"),
        (LEASES.path("a", "b c/d"), "/apis/coordination.k8s.io/v1/namespaces/a/leases/b%20c%2Fd"),
    ],
)
def test_paths_are_those_of_the_api(path: str, expected: str) -> None:
    assert path == expected


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_name_cannot_leave_its_place_in_the_path(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a name"):
        TRAINJOBS.path("a", name)


def test_an_object_names_itself_completely_or_has_no_path() -> None:
    assert key_of({"metadata": {"name": "n", "namespace": "s"}}) == Key("s", "n")
    with pytest.raises(ValueError, match=r"no metadata\.namespace"):
        TRAINJOBS.path_of({"metadata": {"name": "n"}})
    with pytest.raises(ValueError, match=r"no metadata\.name"):
        key_of({"metadata": {}})


@pytest.mark.parametrize(
    ("version", "wanted", "expected"),
    [("10", "9", True), ("9", "10", False), ("9", "9", True), ("x", "x", True), ("x", "9", None), ("", "9", None)],
)
def test_versions_are_numbers_or_only_equal(version: str, wanted: str, expected: bool | None) -> None:
    assert at_least(version, wanted) is expected


def test_only_the_controller_owns() -> None:
    owners = [{"name": "a"}, {"name": "b", "controller": True}]
    assert controller_of({"metadata": {"ownerReferences": owners}}) == owners[1]
    assert controller_of({"metadata": {}}) is None


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (404, "NotFound", errors.NotFound),
        (409, "AlreadyExists", errors.AlreadyExists),
        (409, "Conflict", errors.Conflict),
        (410, "Gone", errors.Expired),
        (500, "Expired", errors.Transient),
        (400, "Expired", errors.Expired),
        (429, "TooManyRequests", errors.TooManyRequests),
        (403, "Forbidden", errors.Forbidden),
        (401, "Unauthorized", errors.Unauthorized),
        (422, "Invalid", errors.Invalid),
        (400, "BadRequest", errors.Invalid),
        (503, "ServiceUnavailable", errors.Transient),
        (408, "Timeout", errors.Transient),
        (302, "Found", errors.KubeError),
    ],
)
def test_each_answer_has_its_error(code: int, reason: str, expected: type[errors.KubeError]) -> None:
    error = errors.error_from_status(code, {"reason": reason, "message": "why"}, {})
    assert type(error) is expected
    assert (error.status, error.reason, error.message) == (code, reason, "why")


def test_retry_after_comes_from_the_header_or_the_status() -> None:
    by_header = errors.error_from_status(429, b"{}", {"Retry-After": "7"})
    by_status = errors.error_from_status(503, {"details": {"retryAfterSeconds": 3}}, {"Retry-After": "soon"})
    assert isinstance(by_header, errors.TooManyRequests)
    assert by_header.retry_after == 7
    assert isinstance(by_status, errors.Transient)
    assert by_status.retry_after == 3


def test_a_page_of_a_proxy_is_an_error_too() -> None:
    error = errors.error_from_status(502, b"<html>\xff bad gateway</html>", {})
    assert isinstance(error, errors.Transient)
    assert "bad gateway" in error.message
