"""Samples of a source: the same documents each time, independent of splits, and part of every digest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slipway_api.split import Split
from slipway_api.trainjob import Data, DataSource
from slipway_jobs.data.documents import documents, rows
from slipway_jobs.data.places import content_of
from slipway_jobs.data.prepare import prepare
from slipway_jobs.data.sample import Draw
from slipway_jobs.data.sources import Source
from slipway_jobs.data.split import part_of
from slipway_jobs.errors import UserError
from slipway_jobs.storage import Storage

from .conftest import WORDS

TEXTS = [f"{number} {WORDS}" for number in range(300)]
EXPECTED = [False, True, False, False, False, True, False, False, False, True, True, True]
Resolve = Callable[..., list[Source]]


def texts(sources: list[Source]) -> set[str]:
    return {piece.text for piece in documents(sources)}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """The same documents as text files, as jsonl and as parquet."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    (tmp_path / "files").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "files" / f"{number:03d}.txt").write_text(text)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "rows.parquet")
    return {"text": tmp_path / "files", "jsonl": tmp_path / "rows.jsonl", "parquet": tmp_path / "rows.parquet"}


def source(places: dict[str, Path], format_: str, **sample: Any) -> dict[str, Any]:
    asked = {"uri": str(places[format_]), "format": format_}
    return asked | ({"sample": sample} if sample else {})


def test_every_format_gives_the_same_part(places: dict[str, Path], sources_of: Resolve) -> None:
    found = [texts(sources_of(source(places, format_, fraction="0.3"))) for format_ in places]
    assert found[0] == found[1] == found[2]
    assert 60 < len(found[0]) < 120
    asked = sources_of(source(places, "jsonl", fraction="0.3"))
    assert {row.fields["text"] for row in rows(asked)} == found[0], "an evaluation reads the same rows"


def test_a_smaller_fraction_is_a_subset_and_another_seed_another_part(
    places: dict[str, Path], sources_of: Resolve
) -> None:
    small, large, other = (
        texts(sources_of(source(places, "jsonl", **sample)))
        for sample in ({"fraction": "0.2"}, {"fraction": "0.5"}, {"fraction": "0.2", "seed": 1})
    )
    assert small < large
    assert small != other
    assert texts(sources_of(source(places, "jsonl", fraction="1"))) == set(TEXTS)


def test_a_sample_cuts_independently_of_a_split_of_the_same_seed(places: dict[str, Path], sources_of: Resolve) -> None:
    """Else a sample of a fifth would be the fifth that is held out, and nothing would be left to learn again."""
    split = Split.model_validate({"evalFraction": "0.2"})
    sampled = sources_of(source(places, "jsonl", fraction="0.2"))
    trained, held = (texts(part_of(sampled, split, held_out=side, field="f")) for side in (False, True))
    assert trained | held == texts(sampled)
    assert len(trained) > 2 * len(held) > 0


def test_the_rule_is_written_down() -> None:
    draw = Draw(DataSource.model_validate({"uri": "/x", "sample": {"fraction": "0.5"}}).sample)  # type: ignore[arg-type]
    taken = [draw.takes(content_of(str(number))) for number in range(12)]
    assert taken == EXPECTED


def test_digests_depend_on_the_sample(places: dict[str, Path], sources_of: Resolve) -> None:
    for format_ in places:
        asked: tuple[dict[str, Any], ...] = (
            {},
            {"fraction": "0.5"},
            {"fraction": "0.5", "seed": 1},
            {"fraction": "0.6"},
        )
        assert len({sources_of(source(places, format_, **sample))[0].digest for sample in asked}) == 4
        same = [sources_of(source(places, format_, fraction=fraction))[0].digest for fraction in ("0.5", "0.50")]
        assert same[0] == same[1]


def test_prepared_data_hold_the_sample_alone(
    places: dict[str, Path], tmp_path: Path, fresh: Any, small_bpe: Any
) -> None:
    cache = Storage(tmp_path / "cache")
    for format_ in places:
        data = Data.model_validate({"sources": [source(places, format_, fraction="0.3")], "sequenceLength": 16})
        prepared = prepare(data, small_bpe, fresh, cache, progress=lambda _: None)
        assert 60 < prepared.train_documents < 120


def test_a_source_of_which_nothing_is_drawn_is_left_out_and_only_nothing_at_all_is_an_error(
    places: dict[str, Path], tmp_path: Path, fresh: Any, small_bpe: Any
) -> None:
    cache = Storage(tmp_path / "cache")
    for format_ in places:
        none = source(places, format_, fraction="0.000000001")
        alone = Data.model_validate({"sources": [none], "sequenceLength": 16})
        with pytest.raises(UserError, match=r"data\.sources: .*sample\.fraction") as caught:
            prepare(alone, small_bpe, fresh, cache, progress=lambda _: None)
        assert caught.value.reason == "DataEmpty"
        both = Data.model_validate({"sources": [none, source(places, "jsonl")], "sequenceLength": 16})
        assert prepare(both, small_bpe, fresh, cache, progress=lambda _: None).train_documents == len(TEXTS)
