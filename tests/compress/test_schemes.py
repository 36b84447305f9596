"""Every scheme, from a model directory to one that loads again and computes the same: each library really at work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from slipway_api.compression import SCHEMES, CompressionResult
from slipway_api.references import ModelReference
from slipway_api.run import CompressRunSpec
from slipway_jobs.compress import compress, load_compressed
from slipway_jobs.compress.dense import load_dense
from slipway_jobs.compress.layers import FLOAT, follows, linear_names, require_storage, storage_of
from slipway_jobs.compress.texts import draw, open_texts
from slipway_jobs.errors import UserError
from slipway_jobs.storage import Storage

from .conftest import QUICK, World

CPU = torch.device("cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "int8Dynamic": {"int8Dynamic": {}},
    "int8WeightOnly": {"int8WeightOnly": {}},
    "nf4": {"nf4": {"doubleQuantization": True}},
    "bnbInt8": {"bnbInt8": {}},
    "gptq": {"gptq": {"groupSize": 32}},
    "awq": {"awq": {"groupSize": 32}},
    "smoothQuant": {"smoothQuant": {}},
    "fp8": {"fp8": {}},
    "sparseGpt": {"sparseGpt": {}},
    "sparseGpt 2:4": {"sparseGpt": {"pattern": "2:4"}},
    "sparseGpt 4:8": {"sparseGpt": {"pattern": "4:8"}},
    "wanda": {"wanda": {"sparsity": "0.3"}},
    "wanda 2:4": {"wanda": {"pattern": "2:4"}},
    "magnitude": {"magnitude": {}},
    "magnitude 4:8": {"magnitude": {"pattern": "4:8"}},
}
# What the files may take of the dense model's, which are 4 bytes a weight; embeddings stay as they are.
BYTES_PER_WEIGHT = {"int8Dynamic": 1.1, "int8WeightOnly": 1.1, "nf4": 0.6, "bnbInt8": 1.1, "gptq": 0.7, "awq": 0.7}
BYTES_PER_WEIGHT |= {"smoothQuant": 1.1, "fp8": 1.1}
SMALL_IN_MEMORY = {"int8Dynamic", "int8WeightOnly", "nf4", "bnbInt8", "smoothQuant"}


@pytest.fixture(scope="module")
def made(contract: Callable[..., CompressRunSpec]) -> dict[str, CompressionResult]:
    """Each scheme's result."""
    return {
        name: compress(contract(scheme), progress=lambda _: None, effort=QUICK) for name, scheme in SETTINGS.items()
    }


def test_every_scheme_of_the_api_is_tried() -> None:
    assert {name.split()[0] for name in SETTINGS} == set(SCHEMES)


@pytest.mark.parametrize("name", SETTINGS)
def test_round_trip(name: str, made: dict[str, CompressionResult], world: World) -> None:
    result = made[name]
    directory = Path(result.uri)
    lineage = json.loads((directory / "slipway.json").read_text())
    ids = torch.arange(3, 35).unsqueeze(0)
    first, tokenizer = load_compressed(directory, CPU)
    second, _ = load_compressed(directory, CPU)
    with torch.no_grad():
        logits = first(ids).logits
        assert torch.equal(logits, second(ids).logits)
        dense = load_dense(world.model, "model", CPU)(ids).logits
    assert tokenizer("abc def").input_ids
    assert logits.isfinite().all()
    error = float((logits - dense).norm() / dense.norm())
    assert 0 < error < (0.5 if result.sparsity is None else 1.5)  # random weights: halving them leaves nothing alike
    assert lineage["compression"]["scheme"] == result.scheme == name.split(maxsplit=1)[0]
    assert lineage["digest"] == result.digest and lineage["base"]["digest"] == result.base_digest
    assert float(result.quality_loss) == pytest.approx(
        float(result.after.perplexity) / float(result.before.perplexity) - 1, abs=1e-3
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_saved(name: str, made: dict[str, CompressionResult], world: World) -> None:
    result = made[name]
    layers = json.loads((Path(result.uri) / "slipway.json").read_text())["compression"]["layers"]
    assert len(layers) == 14  # 7 in each of 2 blocks
    dense = load_dense(world.model, "model", CPU)
    weights = sum(dense.get_submodule(layer).weight.numel() for layer in layers)
    rest = result.before.size_bytes - 4 * weights
    scheme = result.scheme
    if scheme in BYTES_PER_WEIGHT:
        overhead = 24_000  # of names and scales: the model is tiny
        assert result.after.size_bytes < rest + BYTES_PER_WEIGHT[scheme] * weights + overhead
        assert result.sparsity is None
    else:
        assert result.after.size_bytes == pytest.approx(result.before.size_bytes, rel=0.02)
    if scheme in SMALL_IN_MEMORY:
        assert result.after.memory_bytes < 0.6 * result.before.memory_bytes
    else:
        assert result.after.memory_bytes >= 0.99 * result.before.memory_bytes
        assert "expanded" in result.execution or "dense" in result.execution


@pytest.mark.parametrize("name", [name for name in SETTINGS if name.split()[0] in ("sparseGpt", "wanda", "magnitude")])
def test_zeros(name: str, made: dict[str, CompressionResult]) -> None:
    directory = Path(made[name].uri)
    settings = json.loads((directory / "slipway.json").read_text())["compression"]
    sparsity, pattern = float(settings["settings"]["sparsity"]), settings["settings"]["pattern"]
    with safe_open(directory / "model.safetensors", "pt") as file:
        for layer in settings["layers"]:
            weight = file.get_tensor(f"{layer}.weight")
            assert float((weight == 0).float().mean()) == pytest.approx(sparsity, abs=0.01)
            if pattern != "unstructured":
                assert follows(weight, pattern)
        assert float((file.get_tensor("model.embed_tokens.weight") == 0).float().mean()) < 0.01
    assert float(made[name].sparsity or 0) == pytest.approx(sparsity, abs=0.01)


def test_wanda_removes_by_what_the_calibration_texts_activate(
    made: dict[str, CompressionResult], world: World, contract: Callable[..., CompressRunSpec]
) -> None:
    """The first layer's mask, computed by hand: in each row the smallest |weight| x norm of the input feature."""
    compression = contract(SETTINGS["wanda"]).compression
    calibration = compression.calibration
    assert calibration is not None
    model = ModelReference(uri=str(world.model))
    texts = open_texts(model, calibration, compression.held_out, Storage(world.cache), lambda _: None)
    assert texts.calibration is not None
    dense = load_dense(world.model, "model", CPU)
    layer = "model.layers.0.self_attn.q_proj"
    weight = dense.get_submodule(layer).weight.detach()
    with torch.no_grad():
        embedded = dense.get_input_embeddings()(draw(texts.calibration, calibration))
        inputs = dense.get_submodule("model.layers.0.input_layernorm")(embedded)
    scores = weight.abs() * inputs.flatten(0, 1).norm(dim=0)
    expected = torch.zeros_like(weight, dtype=torch.bool)
    expected.scatter_(1, scores.argsort(dim=1)[:, : int(0.3 * weight.shape[1])], True)
    pruned = load_compressed(made["wanda"].uri, CPU)[0].get_submodule(layer).weight
    assert float(((pruned == 0) == expected).float().mean()) > 0.995
    by_weight_alone = torch.zeros_like(expected)
    by_weight_alone.scatter_(1, weight.abs().argsort(dim=1)[:, : int(0.3 * weight.shape[1])], True)
    assert float((by_weight_alone == expected).float().mean()) < 0.98


def test_a_model_that_was_skipped_does_not_pass(world: World) -> None:
    """A library that silently leaves layers alone is the failure that this must see."""
    dense = load_dense(world.model, "model", CPU)
    names = linear_names(dense)
    assert {storage_of(dense.get_submodule(name)) for name in names} == {FLOAT}
    with pytest.raises(UserError, match="14 float") as raised:
        require_storage(dense, names, "nf4")
    assert raised.value.reason == "SchemeNotApplied"


def test_group_size_that_does_not_divide(contract: Callable[..., CompressRunSpec]) -> None:
    with pytest.raises(UserError, match=r"gptq\.groupSize: 128 does not divide .*q_proj \(64\)") as raised:
        compress(contract({"gptq": {}}), progress=lambda _: None, effort=QUICK)
    assert raised.value.reason == "SchemeSettingsInvalid"
