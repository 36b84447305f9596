"""The profile that a training run leaves beside its model, from what is held out, and why there may be none."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from slipway_api.references import TrainingModel
from slipway_api.trainjob import Data, DataSource, Tokenizer, TrainTokenizer
from slipway_jobs.data import PreparedData, prepare
from slipway_jobs.data.tokenizer import load_backend
from slipway_jobs.drift.profile import read_profile
from slipway_jobs.drift.reference import tokenizer_digest
from slipway_jobs.storage import Storage
from slipway_jobs.train import exported_model as module
from slipway_jobs.train.exported_model import ExportedModel
from slipway_jobs.train.reference_profile import profile_of, write_profile

from .conftest import FRESH


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on more, and far slower where other processes want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lines(letters: str, count: int, seed: int) -> str:
    draws = random.Random(seed)
    return "".join(
        " ".join("".join(draws.choices(letters, k=draws.randint(2, 7))) for _ in range(8)) + "\n" for _ in range(count)
    )


def prepared_of(root: Path, *, held_out: int) -> PreparedData:
    """Training documents of one kind of letters, `held_out` lines of another."""
    for number in range(20):
        (root / f"train-{number}.txt").write_text(lines("abcdef", 100, number))
    (root / "held.txt").write_text(lines("uvwxyz", held_out, 99))
    data = Data(
        sources=[DataSource(uri=str(root), include=["train-*.txt"])],
        eval_sources=[DataSource(uri=str(root / "held.txt"))],
        sequence_length=32,
    )
    tokenizer = Tokenizer(train=TrainTokenizer(vocab_size=300))
    model = TrainingModel.model_validate(FRESH)
    return prepare(data, tokenizer, model, Storage(root / "cache", field="cache"), progress=lambda _: None)


def exported(prepared: PreparedData, folder: Path) -> Any:
    """A model with random weights in a directory, as a run leaves it; the model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=prepared.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        eos_token_id=prepared.eos_id,
        initializer_range=0.4,
    )
    lm = LlamaForCausalLM(config).eval()
    save(lm, folder)
    for path in prepared.tokenizer_dir.iterdir():
        shutil.copyfile(path, folder / path.name)
    return lm


def save(lm: Any, folder: Path) -> None:
    """config.json and weights; transformers' own save_pretrained imports deepspeed."""
    folder.mkdir(exist_ok=True)
    lm.config.architectures = [type(lm).__name__]
    lm.config.save_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in lm.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_half_of_the_requests_are_held_out_and_tokens_are_ranked_by_other_documents(tmp_path: Path) -> None:
    prepared = prepared_of(tmp_path, held_out=1000)
    target = tmp_path / "model"
    exported(prepared, target)
    told = write_profile(target, prepared)
    names = load_backend(prepared.tokenizer_dir).get_vocab(with_added_tokens=True)
    profile = read_profile(target / "reference", tokenizer_digest(names))
    losses = profile.sample.numbers["input.loss"]
    assert told == {"digest": profile.digest, "requests": profile.sample.rows, "losses": np.isfinite(losses).sum()}
    assert profile.vocabulary.counts[names["a"]] > 0
    assert profile.vocabulary.counts[[names["u"], prepared.eos_id]].tolist() == [0, 0]
    unseen = profile.sample.numbers["input.unseenTokens"]  # of letters that no training document has
    assert 0.4 < (unseen > 0.5).mean() < 0.6
    assert np.isfinite(losses[unseen > 0.5]).all()  # all that are held out, and no others
    assert np.isnan(losses[unseen < 0.5]).all()
    assert "input.loss" in {signal.name for signal in profile.signals}
    assert profile_of(prepared, ExportedModel(target)).digest == profile.digest


def test_losses_and_answers_are_those_of_the_exported_model(tmp_path: Path) -> None:
    lm = exported(prepared_of(tmp_path, held_out=200), tmp_path / "model")
    model = ExportedModel(tmp_path / "model")
    texts = [f"{lines('abcdefuvw', 1 + number % 5, number)}</s>" for number in range(103)]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    found = model.losses(["a", *texts])
    assert math.isnan(found[0])  # nothing comes before a single token
    for text, loss in zip(texts, found[1:], strict=True):
        read = torch.tensor([tokenizer.encode(text, split_special_tokens=True)[:64]])  # what the model is built for
        assert loss == pytest.approx(lm(read, labels=read).loss.item(), abs=1e-4)
    outputs = model.outputs(texts)
    assert (outputs["prompts"], outputs["maxTokens"]) == (16, 32)
    assert 1 <= outputs["tokens"][0] <= outputs["tokens"][-1] <= 32
    assert 0 < outputs["entropy"][0] < outputs["entropy"][-1] <= math.log(lm.config.vocab_size)
    assert outputs == ExportedModel(tmp_path / "model").outputs(texts)
    with torch.no_grad():
        lm.lm_head.weight.zero_()  # knows nothing: every token is as likely
    save(lm, tmp_path / "model")
    even = ExportedModel(tmp_path / "model").outputs(texts)
    assert even["entropy"] == pytest.approx([math.log(lm.config.vocab_size)] * 7, abs=1e-4)
    assert even["ended"] < 16


def test_a_model_that_cannot_be_asked_costs_the_losses_and_not_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepared_of(tmp_path, held_out=1000)
    exported(prepared, tmp_path / "model")
    monkeypatch.setitem(module._WORK, "cpu", 1e6)
    told = write_profile(tmp_path / "model", prepared)
    assert told["losses"] == 0
    assert "parameters are too many to take 100 losses on a cpu" in told["lossProblem"]
    assert "has no losses" in capsys.readouterr().err
    profile = read_profile(tmp_path / "model" / "reference")
    assert (profile.digest, profile.outputs) == (profile_of(prepared).digest, {})
    assert "input.loss" not in profile.sample.numbers


def test_where_little_is_held_out_most_requests_are_of_training_documents(tmp_path: Path) -> None:
    prepared = prepared_of(tmp_path, held_out=10)
    exported(prepared, tmp_path / "model")
    profile = profile_of(prepared, ExportedModel(tmp_path / "model"))
    assert profile.sample.rows > 100
    assert (profile.sample.numbers["input.unseenTokens"] < 0.1).mean() > 0.9
    assert "input.loss" not in profile.sample.numbers


def test_no_profile_is_no_failure(prepared: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = write_profile(tmp_path, prepared)
    assert "a reference needs at least 100" in told["problem"]
    assert "warning: no reference profile for drift" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
