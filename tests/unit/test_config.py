"""The operator's configuration file: read whole, or refused with the file and the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway_operator.config import ConfigError, load

GOOD = """
storage: {uri: "file:///data"}
reports: {listen: "127.0.0.1:0", url: "http://127.0.0.1:1", keyFile: /key}
"""


def test_good(tmp_path: Path) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text(GOOD)
    assert load(path).storage.uri == "file:///data"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD + "worker: 3\n", "worker"),
        (GOOD + "workers: 0\n", "workers"),
        (GOOD + "namespaces: [a, a]\n", "named twice"),
        (GOOD.replace("keyFile: /key", "keyFile: /key, caFile: /ca"), "https://"),
        (GOOD.replace("keyFile: /key", "keyFile: /key, tls: {certFile: /c, keyFile: /k}"), "https://"),
        (GOOD.replace("keyFile: /key", "keyFile: /key, tls: {certFile: /c}"), "reports.tls.keyFile"),
        ("storage: {uri: x}\n", "reports"),
        (": : :", "not YAML"),
        ("[]", "document"),
    ],
)
def test_bad(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml")
