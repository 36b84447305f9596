"""The operator's configuration file: read whole, or refused with the file and the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway_operator.config import ConfigError, load

GOOD = """
storage: {uri: "file:///data"}
reports: {listen: "127.0.0.1:0", url: "http://127.0.0.1:1", keyFile: /key}
"""


def pods(text: str) -> str:
    return GOOD + f"pools: [{{name: a, nodes: 1, cpus: 1, memory: 1Gi, pods: {{{text}}}}}]\n"


def test_what_a_pool_has_for_its_pods(tmp_path: Path) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text(pods("resources: {rdma/hca_a: 1}, env: {NCCL_IB_HCA: mlx5}, tolerations: [{operator: Exists}]"))
    [pool] = load(path).pools
    assert pool.pods.resources == {"rdma/hca_a": 1}
    assert pool.pods.tolerations[0].to_wire() == {"operator": "Exists"}


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
        (pods("resources: {nvidia.com/gpu: 1}"), "not what jobs ask for"),
        (pods("resources: {cpu: 1}"), "must be an extended resource"),
        (pods("resources: {storage.kubernetes.io/disk: 1}"), "must be an extended resource"),
        (pods("resources: {rdma/a: 0}"), r"pools\.0\.pods\.resources"),
        (pods("env: {RAY_AUTH_MODE: none}"), "belongs to Ray"),
        (pods("env: {SLIPWAY_RUN: '{}'}"), "belongs to Ray"),
        (pods("env: {'a b': c}"), r"pools\.0\.pods\.env"),
        (pods("tolerations: [{key: a, operator: In}]"), r"pools\.0\.pods\.tolerations\.0\.operator"),
        (pods("tolerations: [{key: a, operator: Exists, value: b}]"), "Exists takes no value"),
        (pods("tolerations: [{value: b}]"), "Equal needs a key"),
        (pods("nodeSelector: {a: b c}"), r"pools\.0\.pods\.nodeSelector"),
        (pods("hostNetwork: true"), r"pools\.0\.pods\.hostNetwork"),
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
