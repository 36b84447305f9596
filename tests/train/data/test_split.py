"""Splits: disjoint, complete, stable, and part of every digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_api.run import EvalRunSpec
from slipway_api.split import Split
from slipway_api.trainjob import Data
from slipway_jobs.data.documents import documents, rows
from slipway_jobs.data.fingerprints import Fingerprints
from slipway_jobs.data.places import content_of
from slipway_jobs.data.prepare import prepare
from slipway_jobs.data.sources import Source
from slipway_jobs.data.split import Part, is_held_out, part_of
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.dataset import examples, open_suite
from slipway_jobs.storage import Storage

from .conftest import WORDS

RULE_HALF = [False, False, False, False, True, True, True, False, True, True, False, False]
RULE_FOLDS = [2, 2, 2, 2, 0, 0, 1, 2, 0, 0, 1, 1]
TEXTS = [f"{number} {WORDS}" for number in range(200)]


def split(**fields: Any) -> Split:
    return Split.model_validate(fields)


def texts(sources: list[Source]) -> list[str]:
    return [piece.text for piece in documents(sources)]


@pytest.fixture
def row_files(tmp_path: Path) -> dict[str, Path]:
    """The same two hundred documents as jsonl and as parquet."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(TEXTS)))
    pq.write_table(pa.table({"text": TEXTS, "n": list(range(len(TEXTS)))}), table)
    return {"jsonl": lines, "parquet": table}


@pytest.mark.parametrize("format_", ["text", "jsonl", "parquet"])
def test_folds_are_disjoint_and_complete(
    format_: str, corpus: Path, row_files: dict[str, Path], sources_of: Callable[..., list[Source]]
) -> None:
    sources = sources_of({"uri": str(row_files.get(format_, corpus)), "format": format_})
    every = texts(sources)
    held_out = []
    for fold in range(4):
        one = split(folds=4, fold=fold)
        inside = texts(part_of(sources, one, held_out=True, field="f"))
        outside = texts(part_of(sources, one, held_out=False, field="f"))
        assert inside
        assert sorted(inside + outside) == sorted(every)
        assert not set(inside) & set(outside)
        held_out += inside
    assert sorted(held_out) == sorted(every), "each document is held out of one fold"


def test_rows_of_an_evaluation_are_those_that_training_held_out(
    row_files: dict[str, Path], sources_of: Callable[..., list[Source]]
) -> None:
    one = split(evalFraction="0.3")
    for format_, path in row_files.items():
        sources = sources_of({"uri": str(path), "format": format_})
        held_out = part_of(sources, one, held_out=True, field="f")
        assert [row.fields["text"] for row in rows(held_out)] == texts(held_out)
        assert not set(texts(held_out)) & set(texts(part_of(sources, one, held_out=False, field="f")))


def test_where_a_document_lies_and_in_which_order_does_not_matter(
    tmp_path: Path, sources_of: Callable[..., list[Source]]
) -> None:
    one = split(evalFraction="0.5", seed=7)
    found = []
    for folder, order in (("a", TEXTS), ("b", TEXTS[::-1])):
        (tmp_path / folder).mkdir()
        for number, text in enumerate(order):
            (tmp_path / folder / f"{number:03d}.txt").write_text(text)
        sources = sources_of({"uri": str(tmp_path / folder)})
        found.append(set(texts(part_of(sources, one, held_out=True, field="f"))))
    assert found[0] == found[1]
    assert 60 < len(found[0]) < 140


def test_the_rule_is_written_down() -> None:
    """A split that chose otherwise tomorrow would train on what was held out yesterday."""
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(12)]
    assert [is_held_out(split(evalFraction="0.5"), digest) for digest in digests] == RULE_HALF
    assert [next(f for f in range(3) if is_held_out(split(folds=3, fold=f), d)) for d in digests] == RULE_FOLDS


@settings(max_examples=40)
@given(content=st.text(), folds=st.integers(2, 20), seed=st.integers(0, 2**31 - 1))
def test_every_content_is_in_one_fold(content: str, folds: int, seed: int) -> None:
    where = [
        Part(split(folds=folds, fold=fold, seed=seed), held_out=True).takes(content_of(content))
        for fold in range(folds)
    ]
    assert sum(where) == 1


def data_with(corpus: Path, **one: Any) -> Data:
    source = {"uri": str(corpus)}
    return Data.model_validate({"sources": [source], "sequenceLength": 16, **({"split": one} if one else {})})


def test_prepared_data_depend_on_the_split_and_on_nothing_else(
    corpus: Path, tmp_path: Path, fresh: Any, small_bpe: Any, said: list[str]
) -> None:
    cache = Storage(tmp_path / "cache")

    def prepared(**one: Any) -> Any:
        return prepare(data_with(corpus, **one), small_bpe, fresh, cache, progress=said.append)

    whole, first, second = prepared(), prepared(folds=4, fold=0), prepared(folds=4, fold=1)
    assert len({whole.digest, first.digest, second.digest}) == 3
    assert len({whole.tokenizer_dir, first.tokenizer_dir, second.tokenizer_dir}) == 3, "nor does a tokenizer see it"
    assert first.train_documents + first.eval_documents == whole.train_documents
    assert first.eval_documents > 0
    assert whole.eval is None
    said.clear()
    assert prepared(folds=4, fold=0).digest == first.digest
    assert not [line for line in said if "tokenizing" in line], "found in the cache"
    assert not [line for line in said if "also trained on" in line]


def test_a_part_without_a_document_ends_the_run(
    tmp_path: Path, fresh: Any, small_bpe: Any, row_files: dict[str, Path], sources_of: Callable[..., list[Source]]
) -> None:
    lonely = tmp_path / "one.txt"
    lonely.write_text(TEXTS[0] * 20)
    for fraction in ("1e-9", "0.999999999"):
        with pytest.raises(UserError, match=r"data\.split: no document falls into the .*evalFraction") as caught:
            prepare(
                data_with(lonely, evalFraction=fraction),
                small_bpe,
                fresh,
                Storage(tmp_path / "cache"),
                progress=lambda _: None,
            )
        assert caught.value.reason == "SplitEmpty"
    rows_file = {"uri": str(row_files["jsonl"]), "format": "jsonl"}
    for fraction, which in (("1e-9", "held-out part"), ("0.999999999", "part to train on")):
        data = Data.model_validate({"sources": [rows_file], "sequenceLength": 16, "split": {"evalFraction": fraction}})
        with pytest.raises(UserError, match=f"no document falls into the {which}"):
            prepare(data, small_bpe, fresh, Storage(tmp_path / "cache"), progress=lambda _: None)


def evaluation(tmp_path: Path, path: Path, **one: Any) -> EvalRunSpec:
    return EvalRunSpec.model_validate(
        {
            "namespace": "n",
            "name": "e",
            "uid": "u",
            "attempt": 1,
            "storage": str(tmp_path / "storage"),
            "cache": str(tmp_path / "cache"),
            "results": str(tmp_path / "results"),
            "model": {"uri": "/nowhere"},
            "suites": [{"name": "s", "languageModeling": {}}],
            "data": {
                "sources": [{"uri": str(path), "format": "jsonl"}],
                **({"split": one} if one else {}),
            },
            "metrics": ["auto"],
            "confidences": ["0.95"],
            "workers": {"count": 1},
        }
    )


def test_an_evaluation_measures_the_held_out_part(tmp_path: Path, row_files: dict[str, Path]) -> None:
    memo = Fingerprints(Storage(tmp_path / "memo"))

    def opened(**one: Any) -> Any:
        return open_suite(evaluation(tmp_path, row_files["jsonl"], **one), 0, memo, lambda _: None)

    whole = {example.id for example in examples(opened(), 0)}
    parts = [opened(folds=3, fold=fold) for fold in range(3)]
    ids = [{example.id for example in examples(part, 0)} for part in parts]
    assert set.union(*ids) == whole
    assert sum(map(len, ids)) == len(whole)
    assert len({opened().digest, *(part.digest for part in parts)}) == 4
    with pytest.raises(UserError, match=r"^data\.split: no document falls into the held-out part"):
        examples(opened(evalFraction="1e-9"), 0)
