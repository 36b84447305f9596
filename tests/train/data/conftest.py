from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slipway_api.references import TrainingModel
from slipway_api.trainjob import Data, DataSource, Tokenizer
from slipway_jobs.data.fingerprints import Fingerprints
from slipway_jobs.data.sources import Source, resolve
from slipway_jobs.storage import Storage

WORDS = "the quick brown fox jumps over the lazy dog while forty-two ships slip down the way into cold water"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty small text files, different from each other, in two folders."""
    root = tmp_path / "corpus"
    for number in range(40):
        file = root / ("a" if number % 2 else "b") / f"{number:02d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        words = WORDS.split()
        file.write_text(
            f"{number}: "
            + " ".join(words[(number * 7 + step * (number + 1)) % len(words)] for step in range(120))
            + "\n"
        )
    return root


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def sources_of(tmp_path: Path, said: list[str]) -> Callable[..., list[Source]]:
    """Resolve wire-form sources: `sources_of({"uri": ..., "format": ...})`."""

    def make(*items: dict[str, Any]) -> list[Source]:
        memo = Fingerprints(Storage(tmp_path / "memo"))
        return resolve([DataSource.model_validate(item) for item in items], "data.sources", memo, said.append)

    return make


@pytest.fixture
def fresh() -> TrainingModel:
    return TrainingModel.model_validate({"fresh": {"hiddenSize": 16, "layers": 1, "heads": 2}})


@pytest.fixture
def small_bpe() -> Tokenizer:
    return Tokenizer.model_validate({"train": {"vocabSize": 300}})


@pytest.fixture
def data_of() -> Callable[..., Data]:
    def make(*uris: Path | str, held_out: tuple[Path | str, ...] = (), length: int = 16) -> Data:
        return Data.model_validate(
            {
                "sources": [{"uri": str(uri)} for uri in uris],
                "evalSources": [{"uri": str(uri)} for uri in held_out],
                "sequenceLength": length,
            }
        )

    return make
