"""The profile that a training run leaves beside its model, from what is held out, and why there may be none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from slipway_api.references import TrainingModel
from slipway_api.trainjob import Data, DataSource, Tokenizer, TrainTokenizer
from slipway_jobs.data import PreparedData, prepare
from slipway_jobs.data.tokenizer import load_backend
from slipway_jobs.drift.profile import read_profile
from slipway_jobs.drift.reference import tokenizer_digest
from slipway_jobs.storage import Storage
from slipway_jobs.train.reference_profile import profile_of, write_profile

from .conftest import FRESH


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


def test_half_of_the_requests_are_held_out_and_tokens_are_ranked_by_other_documents(tmp_path: Path) -> None:
    prepared = prepared_of(tmp_path, held_out=600)
    target = tmp_path / "model"
    target.mkdir()
    told = write_profile(target, prepared)
    names = load_backend(prepared.tokenizer_dir).get_vocab(with_added_tokens=True)
    profile = read_profile(target / "reference", tokenizer_digest(names))
    assert told == {"digest": profile.digest, "requests": profile.sample.rows}
    assert profile.vocabulary.counts[names["a"]] > 0
    assert profile.vocabulary.counts[[names["u"], prepared.eos_id]].tolist() == [0, 0]
    unseen = profile.sample.numbers["input.unseenTokens"]  # of letters that no training document has
    assert 0.4 < (unseen > 0.5).mean() < 0.6
    assert profile_of(prepared).digest == profile.digest


def test_where_little_is_held_out_most_requests_are_of_training_documents(tmp_path: Path) -> None:
    profile = profile_of(prepared_of(tmp_path, held_out=10))
    assert profile.sample.rows > 100
    assert (profile.sample.numbers["input.unseenTokens"] < 0.1).mean() > 0.9


def test_no_profile_is_no_failure(prepared: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = write_profile(tmp_path, prepared)
    assert "a reference needs at least 100" in told["problem"]
    assert "warning: no reference profile for drift" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
