"""Scores on disk: the same bits back, nothing half written, nothing damaged believed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_jobs.errors import InfrastructureError, UserError
from slipway_jobs.evaluate.examples import (
    ChoiceScore,
    GenerationScore,
    LatencyScore,
    ModelingScore,
    Score,
    ScoredExample,
)
from slipway_jobs.evaluate.score_store import ScoreKey, ScoreStore, shard_name
from slipway_jobs.evaluate.score_table import concatenated, decode, encode
from slipway_jobs.evaluate.tracker import Tracker
from slipway_jobs.storage import Storage

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 1 << 40)
scores: dict[str, st.SearchStrategy[Score]] = {
    "modeling": st.builds(ModelingScore, numbers, counts, counts),
    "choice": st.lists(st.tuples(numbers, counts, texts), min_size=1, max_size=4).flatmap(
        lambda rows: st.builds(
            lambda gold: ChoiceScore(*(tuple(column) for column in zip(*rows, strict=True)), gold),  # type: ignore[arg-type]
            st.integers(0, len(rows) - 1),
        )
    ),
    "generation": st.builds(
        GenerationScore, texts, st.lists(texts, min_size=1).map(tuple), counts, st.sampled_from(["stop", "length"])
    ),
    "latency": st.builds(LatencyScore, numbers, st.lists(numbers).map(tuple), counts),
}


@st.composite
def example(draw: st.DrawFn) -> ScoredExample:
    kind = draw(st.sampled_from(sorted(scores)))
    more: dict[str, Any] = {kind: draw(scores[kind]), "perturbed": draw(st.none() | scores[kind])}
    fields = draw(st.dictionaries(texts, texts, max_size=3))
    return ScoredExample(draw(counts), draw(texts), fields, prompt=draw(texts), **more)


@settings(max_examples=50)
@given(st.lists(example(), max_size=5))
def test_what_is_stored_comes_back_bit_for_bit(examples: list[ScoredExample]) -> None:
    content = encode(examples)
    assert decode(content) == examples
    assert encode(decode(content)) == content
    assert decode(concatenated([content, content])) == examples * 2


def some(count: int = 3, first: int = 0) -> list[ScoredExample]:
    return [ScoredExample(n, f"id{n}", modeling=ModelingScore(1.5 * n, n, n)) for n in range(first, first + count)]


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return ScoreStore(Storage(tmp_path), ScoreKey("sha256:" + "a" * 64, "b" * 64, 7))


def filled(store: ScoreStore) -> ScoreStore:
    store.write_shard(0, some(3))
    store.write_shard(1, some(2, first=3))
    store.commit([shard_name(0), shard_name(1)], examples=5, kind="languageModeling")
    return store


def test_the_marker_makes_scores_complete(store: ScoreStore) -> None:
    store.write_shard(0, some(3))
    assert store.shard_is_there(0, ["id0", "id1", "id2"], 0)
    assert not store.shard_is_there(0, ["id0", "id1", "other"], 0)
    assert not store.shard_is_there(0, ["id0", "id1", "id2"], 1)
    assert not store.is_complete()
    assert filled(store).is_complete()
    assert store.read() == some(5)
    assert "aaaaaaaaaaaaaaaa/bbbbbbbbbbbbbbbb-7" in store.storage.uri


def test_the_same_scores_are_the_same_bytes(store: ScoreStore, tmp_path: Path) -> None:
    other = filled(ScoreStore(Storage(tmp_path / "other"), store.key))
    filled(store)
    for name in ("results.json", shard_name(0), shard_name(1)):
        assert store.storage.read_bytes(name) == other.storage.read_bytes(name)


@pytest.mark.parametrize("place", range(0, 6000, 211))
def test_a_flipped_bit_is_never_a_score(store: ScoreStore, place: int) -> None:
    path = Path(filled(store).storage.uri, shard_name(1))
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0x10
    path.write_bytes(content)
    assert not store.shard_is_there(1, ["id3", "id4"], 3) or decode(bytes(content)) == some(2, first=3)
    with pytest.raises(InfrastructureError) as caught:
        store.read()
    assert caught.value.reason == "ScoresDamaged"
    assert not store.is_complete()  # so the next attempt makes them anew


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"version": 1}', b"\xff"])
def test_a_marker_that_is_none(store: ScoreStore, content: bytes) -> None:
    filled(store).storage.write_bytes_atomic("results.json", content)
    assert not store.is_complete()


def test_a_marker_without_its_shard(store: ScoreStore) -> None:
    filled(store).storage.delete(shard_name(0))
    assert not store.is_complete()


# --- progress -----------------------------------------------------------------------------------------------------


def test_progress_counts_both_models_and_forgets_failed_suites() -> None:
    now = [0.0]
    tracker = Tracker(["a", "b"], 2, clock=lambda: now[0])
    tracker.size("a", 10)
    tracker.size("b", 5)
    assert tracker.evaluation().progress.summary == "0/30"
    tracker.begin("a")
    tracker.advance("a", "model", 4, fresh=False)
    tracker.advance("a", "model", 3)  # while workers were still loading: no part of the rate
    now[0] = 1.25
    tracker.advance("a", "model", 3)
    tracker.advance("a", "baseline", 2)
    progress = tracker.evaluation().progress
    assert (progress.done, progress.total, progress.examples_per_second) == (12, 30, "4")
    assert progress.eta_seconds is not None and math.isclose(progress.eta_seconds, 18 / 4, abs_tol=1)
    assert [suite.done for suite in tracker.suites] == [10, 0]
    tracker.fail("b", UserError("DataEmpty", "nothing there"))
    state = tracker.evaluation()
    assert state.progress.summary == "12/20"
    assert [(suite.state, suite.reason) for suite in state.suites] == [("Running", None), ("Failed", "DataEmpty")]
