"""Discovery, OpenAPI, Tables, reviews and protobuf bodies: what kubectl builds on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from slipway_local.apiserver.jsonpath import compile_path
from slipway_local.apiserver.protobuf import decode_protobuf
from slipway_local.apiserver.tables import age, human_duration

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".a.b", [1]),
        (".list[1].v", [2]),
        (".list[-1].v", [3]),
        (".list[*].v", [1, 2, 3]),
        ('.list[?(@.k=="y")].v', [2]),
        (".list[?(@.v>1)].k", ["y", "z"]),
        (r".dotted\.key", ["d"]),
        ("['dotted.key']", ["d"]),
        (".a.missing", []),
        (".a.b.deeper", []),
    ],
)
def test_jsonpath(path: str, expected: list[Any]) -> None:
    value = {
        "a": {"b": 1},
        "dotted.key": "d",
        "list": [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "z", "v": 3}],
    }
    assert compile_path(path)(value) == expected


@pytest.mark.parametrize("path", ["a", ".a[", ".a[?(x)]", "..a", ".a[1:2]"])
def test_jsonpath_outside_the_subset(path: str) -> None:
    with pytest.raises(ValueError, match="JSONPath"):
        compile_path(path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (200, "3m20s"),
        (3600, "60m"),
        (4 * 3600 + 300, "4h5m"),
        (30 * 3600, "30h"),
        (51 * 3600, "2d3h"),
        (400 * 86400, "400d"),
        (800 * 86400, "2y70d"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_ages_of_odd_timestamps() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert age(None, now) == "<unknown>"
    assert age("soon", now) == "<invalid>"
    assert age("2025-12-31T23:59:50Z", now) == "10s"


def varint(number: int) -> bytes:
    """A protobuf number."""
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: bytes | int) -> bytes:
    """A protobuf field."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(kind: str, raw: bytes) -> bytes:
    """A body as client-go sends it."""
    return b"k8s\x00" + field(1, field(1, b"v1") + field(2, kind.encode())) + field(2, raw)


def test_protobuf_numbers_and_times() -> None:
    moment = field(1, 1_800_000_000) + field(2, 123_456_000)
    spec = field(1, b"me") + field(2, 15) + field(4, moment)
    lease = decode_protobuf(message("Lease", field(1, field(1, b"l")) + field(2, spec)))
    assert lease["spec"] == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 15,
        "renewTime": "2027-01-15T08:00:00.123456Z",
    }
