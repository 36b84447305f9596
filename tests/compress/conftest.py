"""A tiny model with its tokenizer, texts to calibrate and to measure on, and run contracts over them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from slipway_api.compression import CALIBRATED
from slipway_api.run import CompressRunSpec
from slipway_jobs.compress.measure import Effort
from slipway_jobs.data.tokenizer import train_bpe
from slipway_jobs.lean_transformers import whole_transformers

os.environ["HF_HUB_OFFLINE"] = "1"
whole_transformers()  # the tests of a process share it, and some make it lean

QUICK = Effort(prompt_tokens=4, new_tokens=2, rounds=1)
VOCABULARY = 320


@dataclass(frozen=True)
class World:
    """Where things are."""

    model: Path
    calibration: Path
    held_out: Path
    cache: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A Llama of 2 layers, 64 wide, tied embeddings, random weights large enough that rounding them shows."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("compress")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(120)]
    texts = {name: " ".join(draw.choices(words, k=count)) for name, count in (("calibration", 1500), ("held", 300))}
    for name, text in texts.items():
        (root / f"{name}.txt").write_text(text)
    model = root / "model"
    train_bpe([texts["calibration"]], VOCABULARY, model)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    return World(model, root / "calibration.txt", root / "held.txt", root / "cache")


@pytest.fixture(scope="session")
def contract(world: World) -> Callable[..., CompressRunSpec]:
    """A contract: `contract({"nf4": {}}, model=..., cache=..., calibration={...})`."""

    def make(
        scheme: dict[str, Any], *, model: Path | None = None, cache: Path | None = None, **changes: Any
    ) -> CompressRunSpec:
        calibration = {"sources": [{"uri": str(world.calibration)}], "samples": 8, "sequenceLength": 32}
        compression = {
            **scheme,
            **({"calibration": calibration} if set(scheme) & set(CALIBRATED) else {}),
            "heldOut": {"sources": [{"uri": str(world.held_out)}], "sequenceLength": 32, "maxTokens": 256},
            "emulate": True,
            **changes,
        }
        return CompressRunSpec.model_validate(
            {
                "namespace": "default",
                "name": "small",
                "uid": "uid-1",
                "attempt": 1,
                "storage": str(world.cache.parent / "storage"),
                "cache": str(cache or world.cache),
                "model": {"uri": str(model or world.model)},
                "compression": compression,
            }
        )

    return make
