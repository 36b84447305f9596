"""A tiny model with random weights, its tokenizer, and local tasks of lm-evaluation-harness. Nothing is downloaded."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest

from slipway_jobs.evaluate.benchmark_engine import EngineScorer, Part, answer

from .task_files import CHOICE, GENERATION, ROLLING, WORDS, choice_rows, write_rows, write_task


def scorer_of(model: Any, tokenizer: Any, parts: list[Part] | None = None) -> EngineScorer:
    """Our engine on that model; `parts` notes what it was asked."""
    import torch  # noqa: PLC0415

    from slipway_jobs.evaluate.scoring.model import ScoringModel  # noqa: PLC0415

    scoring = ScoringModel(model, tokenizer, batch_tokens=512, device=torch.device("cpu"))

    def ask(asked: Sequence[Part]) -> list[list[Any]]:
        if parts is not None:
            parts.extend(asked)
        return [answer(scoring, part) for part in asked]

    return EngineScorer(ask, tokenizer)


@pytest.fixture(scope="session")
def make_model() -> Callable[[int], Any]:
    """A two-layer Llama with random weights of that seed."""
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=0,
        )
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE with 300 entries."""
    from tokenizers import ByteLevelBPETokenizer  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    trained = ByteLevelBPETokenizer()
    draw = random.Random(1)
    text = (" ".join(draw.choices(WORDS, k=12)) for _ in range(200))
    trained.train_from_iterator(text, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    end = "<|endoftext|>"
    made = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token=end, eos_token=end, pad_token=end)
    made.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return made


@pytest.fixture(scope="session")
def scorer(make_model: Callable[[int], Any], tokenizer: Any) -> EngineScorer:
    """Our engine on the tiny model."""
    return scorer_of(make_model(3), tokenizer)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory with a choice task, one that writes, one of whole texts, and a group of two."""
    root = tmp_path / "tasks"
    write_rows(root / "data" / "choices.jsonl", choice_rows(24))
    write_rows(root / "data" / "more.jsonl", choice_rows(8, seed=9))
    # Words that do not repeat: lm_eval's HFLM gives wrong sums where two windows hold the same tokens.
    draw = random.Random(4)
    texts = [{"text": " ".join(draw.choices(WORDS, k=25 * (i + 1)))} for i in range(6)]
    write_rows(root / "data" / "texts.jsonl", texts)
    write_task(root / "colours.yaml", task="colours", **CHOICE)
    write_task(root / "writes.yaml", task="writes", **GENERATION)
    write_task(root / "texts.yaml", task="texts", **ROLLING)
    return root


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline even where another test has imported the hub's client before."""
    import datasets.config  # noqa: PLC0415
    import huggingface_hub.constants  # noqa: PLC0415

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
