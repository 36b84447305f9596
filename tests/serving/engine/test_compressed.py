"""A compressed model in the engine: really quantized, really smaller, and never a damaged one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from slipway_api.compression import CompressionResult
from slipway_api.references import ModelReference
from slipway_api.run import CompressRunSpec
from slipway_api.serving import EngineConfig
from slipway_jobs.compress import load_compressed
from slipway_jobs.compress.kernels import int8_linear
from slipway_jobs.compress.layers import KERNEL_INT8, TORCHAO_INT8, memory_bytes, storage_of
from slipway_jobs.compress.measure import Effort
from slipway_jobs.compress.step import compress
from slipway_jobs.errors import InfrastructureError, UserError
from slipway_serving.engine import Engine
from slipway_serving.engine.generation import Generation
from slipway_serving.engine.model import ServedModel

from .conftest import config_for, save_model

QUICK = Effort(prompt_tokens=4, new_tokens=2, rounds=1)


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that the linear layers are most of it."""
    return save_model(tmp_path_factory.mktemp("wide"), hidden=128)


@pytest.fixture(scope="session")
def made(wide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CompressionResult]:
    """The model, compressed by two schemes."""
    root = tmp_path_factory.mktemp("compressed")
    (root / "held.txt").write_text("the quick brown fox jumps over the lazy dog " * 40)

    def run(scheme: str) -> CompressionResult:
        held_out = {"sources": [{"uri": str(root / "held.txt")}], "sequenceLength": 32, "maxTokens": 128}
        spec = {
            **{"namespace": "default", "name": "chat", "uid": "u", "attempt": 1},
            **{"storage": str(root / "storage"), "cache": str(root / "cache"), "model": {"uri": str(wide_folder)}},
            "compression": {scheme: {}, "heldOut": held_out},
        }
        return compress(CompressRunSpec.model_validate(spec), progress=print, effort=QUICK)

    return {scheme: run(scheme) for scheme in ("int8Dynamic", "int8WeightOnly")}


def config_of(result: CompressionResult, **changes: object) -> EngineConfig:
    model = ModelReference(uri=result.uri)
    told = {"model": model, "digest": result.digest, "compression": result.scheme}
    return config_for(Path(result.uri), **{**told, **changes})


def linears(lm: nn.Module) -> list[nn.Module]:
    """The layers that a scheme applies to: all but the output layer."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return [module for name, module in lm.named_modules() if name.endswith(names)]


@pytest.mark.parametrize(
    ("scheme", "storage", "execution"),
    [("int8Dynamic", KERNEL_INT8, int8_linear.NAME), ("int8WeightOnly", TORCHAO_INT8, "torchao int8 weights")],
)
def test_every_layer_is_quantized_and_memory_is_what_status_says(
    made: dict[str, CompressionResult], wide_folder: Path, scheme: str, storage: str, execution: str
) -> None:
    result = made[scheme]
    served = ServedModel.load(config_of(result), gpu=False)
    assert len(linears(served.lm)) == 14
    assert {storage_of(layer) for layer in linears(served.lm)} == {storage}
    assert served.execution == result.execution == execution
    dense = ServedModel.load(config_for(wide_folder), gpu=False)
    assert memory_bytes(served.lm) == result.after.memory_bytes
    assert memory_bytes(served.lm) < 0.5 * memory_bytes(dense.lm)


@pytest.mark.parametrize("scheme", ["int8Dynamic", "int8WeightOnly"])
def test_answers_are_those_of_the_compressed_weights(made: dict[str, CompressionResult], scheme: str) -> None:
    result = made[scheme]
    served = ServedModel.load(config_of(result), gpu=False)
    prompt = tuple(served.tokenizer.encode("the quick brown"))
    engine = Engine(served, max_batch=4, max_queue=4)
    try:

        async def ask() -> str:
            whole = Generation(prompt=prompt, max_tokens=12, temperature=0.0)
            return "".join([piece.text async for piece in engine.stream(whole)])

        answer = asyncio.run(ask())
    finally:
        engine.close()
    lm, tokenizer = load_compressed(result.uri, torch.device("cpu"))
    wanted = lm.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert answer == tokenizer.decode(wanted[0, len(prompt) :], skip_special_tokens=True)


def test_a_damaged_output_is_named(made: dict[str, CompressionResult], tmp_path: Path) -> None:
    result = made["int8Dynamic"]
    for path in Path(result.uri).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InfrastructureError, match="changed or damaged") as caught:
        ServedModel.load(config_of(result, model=ModelReference(uri=str(tmp_path))), gpu=False)
    assert caught.value.reason == "ModelDamaged"


def test_another_scheme_than_asked_for_is_refused(made: dict[str, CompressionResult]) -> None:
    with pytest.raises(UserError, match="was compressed by int8Dynamic, not by nf4"):
        ServedModel.load(config_of(made["int8Dynamic"], compression="nf4"), gpu=False)


_SCARCE = """
import resource, sys
from slipway_api.serving import EngineConfig
from slipway_serving.engine.model import ServedModel
import transformers.models.llama.modeling_llama, torchao, slipway_jobs.compress.loading
config = EngineConfig.model_validate_json(sys.argv[1])
used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)
try:
    ServedModel.load(config, gpu=False)
except Exception as error:
    sys.exit(f"{getattr(error, 'reason', type(error).__name__)}: {error}"[:300])
"""


@pytest.mark.timeout(120)
def test_too_little_memory_is_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path, hidden=1024)
    told = config_for(folder).model_dump_json(by_alias=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", _SCARCE, told], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("OutOfMemory: model: ")
    assert "does not fit" in last
