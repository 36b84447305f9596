"""The generated CRDs: in step with the chart, structural, bounded, and agreeing with the models they come from."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import pytest

from slipway_api import crd
from slipway_api.__main__ import main, render
from slipway_api.trainjob import TrainJobSpec

CHART = Path(__file__).resolve().parents[3] / "charts/slipway/templates/crds"
SCHEMAS = {k.kind: crd.crd(k)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for k in crd.KINDS}


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")


NODES = [(kind, path, node) for kind, schema in SCHEMAS.items() for path, node in walk(schema)]


def test_the_chart_ships_what_the_models_say() -> None:
    assert {p.name: p.read_text() for p in CHART.glob("*.yaml")} == render()


def test_check_fails_on_a_stale_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crds", str(tmp_path)]) == 0
    assert main(["crds", str(tmp_path), "--check"]) == 0
    (tmp_path / "trainjobs.yaml").write_text("kind: Other\n")
    assert main(["crds", str(tmp_path), "--check"]) == 1
    assert "make crds" in capsys.readouterr().err


def test_every_yaml_library_reads_a_decimal_as_the_string_that_it_is() -> None:
    """YAML 1.2 and Go's libraries take a bare 3e-4 for a number, and the API server then refuses the default."""
    for text in render().values():
        assert not re.findall(r"(?m)^\s*(?:- |[A-Za-z]+: )[-+.0-9][0-9.]*[eE][-+]?[0-9]+$", text)
    assert re.search(r'default: "3e-4"', render()["trainjobs.yaml"])


def test_no_helm_directive_hides_in_a_description() -> None:
    assert not [name for name, text in render().items() if "{{" in text]


@pytest.mark.parametrize(("kind", "path", "node"), NODES, ids=[f"{k}{p}" for k, p, _ in NODES])
def test_every_node_is_structural_bounded_and_described(kind: str, path: str, node: dict[str, Any]) -> None:
    assert node.get("type") in {"object", "array", "string", "integer", "boolean"}, "no floats, no untyped nodes"
    assert not {"$ref", "title", "anyOf", "oneOf", "allOf", "nullable"} & node.keys()
    if node["type"] == "string" and path not in (".apiVersion", ".kind"):
        assert "maxLength" in node or "enum" in node, "an unbounded string makes CEL cost unbounded"
    if node["type"] == "array":
        assert "maxItems" in node
        assert node["x-kubernetes-list-type"] in {"atomic", "map", "set"}
    if node["type"] == "integer":
        assert "minimum" in node or "enum" in node
    if path and path != ".metadata" and not path.endswith("[]"):
        assert node.get("description"), "kubectl explain is the manual"
    assert path.rsplit(".", 1)[-1] != "phase", "conditions are the state"


@pytest.mark.parametrize(
    "rule", sorted({r["rule"] for _, _, node in NODES for r in node.get("x-kubernetes-validations", [])})
)
def test_every_rule_compiles(rule: str) -> None:
    cel.compile(rule)


def test_conditions_are_a_keyed_list_and_the_first_status_to_read() -> None:
    conditions = SCHEMAS["TrainJob"]["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def defaults(schema: dict[str, Any], value: Any) -> Any:
    """What a kube-apiserver's defaulting makes of a value."""
    if schema["type"] == "object" and isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = defaults(child, copy.deepcopy(child["default"]))
            elif name in value:
                value[name] = defaults(child, value[name])
    elif schema["type"] == "array":
        return [defaults(schema["items"], item) for item in value]
    return value


def test_schema_defaults_are_the_models_defaults() -> None:
    minimal = {
        "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
        "tokenizer": {"train": {}},
        "data": {"sources": [{"uri": "python://stdlib"}]},
        "training": {"steps": 1},
    }
    model = TrainJobSpec.model_validate(minimal).to_wire()
    assert defaults(SCHEMAS["TrainJob"]["properties"]["spec"], minimal) == model
