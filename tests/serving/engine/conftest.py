"""A tiny model with random weights and a byte-level tokenizer, and an engine over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from slipway_api.references import ModelReference
from slipway_api.serving import EngineConfig
from slipway_jobs.lean_transformers import whole_transformers
from slipway_serving.engine import Engine
from slipway_serving.engine.model import ServedModel

os.environ.setdefault("HF_HUB_OFFLINE", "1")
whole_transformers()  # the tests of a process share it, and some make it lean


def save_model(folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2, positions: int = 256) -> Path:
    """A Llama of two layers with grouped heads and a tokenizer of bytes and some merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=positions,
        eos_token_id=0,
        bos_token_id=None,
        initializer_range=0.4,  # far from uniform, so that a mistake shows
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on more, and far slower where other processes want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("served"))


def config_for(folder: Path, **changes: object) -> EngineConfig:
    whole = {"version": "v-1", "model": ModelReference(uri=str(folder)), "precision": "fp32", "max_batch": 8}
    return EngineConfig.model_validate({**whole, "max_context_tokens": 256, **changes})


@pytest.fixture(scope="session")
def served(model_folder: Path) -> ServedModel:
    return ServedModel.load(config_for(model_folder), gpu=False)


@pytest.fixture
def engine(served: ServedModel) -> Iterator[Engine]:
    made = Engine(served, max_batch=8, max_queue=1000)
    yield made
    made.close()
