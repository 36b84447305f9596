"""What the tests of evaluations share: tiny models with random weights, in a directory each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from slipway_api.run import EvalRunSpec
from slipway_jobs.data.tokenizer import train_bpe
from slipway_jobs.evaluate.scoring.model import ScoringModel

from ...ray_head import RayHead  # noqa: TID252 - `tests` is no package to import from

VOCABULARY = 320
TEXT = "the quick brown fox jumps over a lazy dog while seven wizards quietly box up many jars of honey"
WORDS = TEXT.split()


def text_of(words: int, seed: int = 0) -> str:
    """Deterministic prose of so many words."""
    return " ".join(WORDS[(seed * 31 + place * place * 7 + place) % len(WORDS)] for place in range(words))


def make_model(
    directory: Path, *, seed: int = 0, vocabulary: int = VOCABULARY, length: int = 128, poison: str = ""
) -> Path:
    """A Llama of two layers with random weights that are large enough to have opinions, and its tokenizer.

    Reading the character `poison` gives NaN.
    """
    directory.mkdir(parents=True, exist_ok=True)
    train_bpe([text_of(400, seed=1)], VOCABULARY, directory)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=not poison,
    )
    torch.manual_seed(seed)
    lm = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
        if poison:
            tokenizer = AutoTokenizer.from_pretrained(directory)
            (token,) = tokenizer.encode(poison, add_special_tokens=False)
            lm.get_input_embeddings().weight[token] = float("nan")
            lm.get_output_embeddings().weight[token] = 0  # so that it is not written by itself
    lm.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def model(model_dir: Path) -> ScoringModel:
    return load(model_dir)


def load(directory: Path, **options: Any) -> ScoringModel:
    return ScoringModel.load(directory, str(directory), **{"batch_tokens": 512, **options})


# --- data ---------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(path: Path, **more: Any) -> dict[str, Any]:
    return {"sources": [{"uri": str(path), **({"format": "jsonl"} if path.suffix == ".jsonl" else {}), **more}]}


def make_run(folder: Path, suites: list[dict[str, Any]], model: Path, **changes: Any) -> EvalRunSpec:
    """A run on one worker, everything below `folder`. `changes` are top-level fields, camelCase."""
    document: dict[str, Any] = {
        "namespace": "default",
        "name": "measured",
        "uid": f"uid-{folder.name}",
        "attempt": 1,
        "storage": str(folder / "store" / "job"),
        "cache": str(folder / "store" / "cache"),
        "results": str(folder / "store" / "eval"),
        "model": {"uri": str(model)},
        "suites": suites,
        "metrics": ["auto"],
        "confidences": ["0.95"],
        "batchTokens": 512,
        "workers": {"count": 1, "resources": {"cpu": "1"}},
    }
    document.update(changes)
    return EvalRunSpec.model_validate(document)


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    head = RayHead()
    yield head
    head.close()


class Run:
    """One attempt as a process of its own, as Ray's job supervisor starts it."""

    def __init__(self, spec: EvalRunSpec, environment: dict[str, str] | None = None) -> None:
        self.spec = spec
        self.store = Path(spec.storage)
        self.output = Path(spec.storage).parent / f"output-{spec.attempt}-{time.monotonic_ns()}.txt"
        self.output.parent.mkdir(parents=True, exist_ok=True)
        kept = environment or {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLIPWAY_"))}
        more = {"SLIPWAY_RUN": json.dumps(spec.to_wire()), "SLIPWAY_END_REPORT_SECONDS": "10", "HF_HUB_OFFLINE": "1"}
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slipway_jobs.evaluate"],
                env=kept | more,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, timeout: float = 200) -> int:
        """The exit code."""
        try:
            return self.process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.text()[-4000:]}") from None

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def results(self) -> dict[str, Any]:
        """results.json of the job."""
        found: dict[str, Any] = json.loads((self.store / "results" / "results.json").read_bytes())
        return found

    def wait_until(self, condition: Callable[[], object], what: str, timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.text()[-4000:]}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.text()[-4000:]}"
            time.sleep(0.02)
