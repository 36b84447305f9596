"""Features: by hand on small texts, and never an exception or a nonsense number on any text."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway_jobs.drift.features import (
    RANK_BUCKETS,
    Vocabulary,
    answer_features,
    byte_tokens_of,
    feedback_features,
    looks_like_refusal,
    request_features,
)

VOCABULARY = Vocabulary(np.array([8, 0, 4, 4]), byte_tokens=[2], unknown_tokens=[3])


def test_a_small_text_by_hand() -> None:
    features = request_features("Ab 1é,", [0, 0, 2, 1], VOCABULARY, loss=1.5)
    numbers = features.numbers
    assert numbers["input.characters"] == 6 and numbers["input.tokens"] == 4
    sixth = pytest.approx(1 / 6)
    assert numbers["input.upperCase"] == numbers["input.digits"] == numbers["input.spaces"] == sixth
    assert numbers["input.nonAscii"] == numbers["input.punctuation"] == sixth
    assert numbers["input.letters"] == pytest.approx(2 / 6)
    assert numbers["input.byteTokens"] == numbers["input.unseenTokens"] == 0.25
    assert numbers["input.unknownTokens"] == 0
    assert numbers["input.typeTokenRatio"] == 0.75
    assert numbers["input.loss"] == 1.5
    expected = -(2 * math.log(8.5 / 18.5) + math.log(4.5 / 18.5) + math.log(0.5 / 18.5)) / 4
    assert numbers["input.surprisal"] == pytest.approx(expected)
    assert features.ranks is not None
    assert features.ranks.tolist() == [2, 1, *[0] * (RANK_BUCKETS - 3), 1]


@settings(max_examples=100)
@given(st.text(max_size=80), st.lists(st.integers(-5, 2**40), max_size=40))
def test_any_text_gives_finite_shares(text: str, tokens: list[int]) -> None:
    features = request_features(text, tokens, VOCABULARY)
    assert all(math.isfinite(value) for value in features.numbers.values())
    shares = ("letters", "digits", "spaces", "punctuation", "upperCase", "nonAscii", "byteTokens", "unseenTokens")
    assert all(0 <= features.numbers.get(f"input.{name}", 0) <= 1 for name in shares)
    if features.ranks is not None:
        assert features.ranks.sum() == len(tokens)


def test_surrogates_and_nothing_at_all() -> None:
    assert request_features("\ud800", [0], VOCABULARY).numbers["input.nonAscii"] == 1
    assert request_features("", [], VOCABULARY).numbers == {"input.characters": 0, "input.tokens": 0}


def test_answers_and_feedback() -> None:
    answer = answer_features("I'm sorry, but I cannot help with that.", 9, "stop", 1.5)
    assert answer.numbers == {"output.tokens": 9, "output.entropy": 1.5}
    assert answer.categories == {"output.refusal": "yes", "output.finishReason": "stop"}
    assert answer_features("", 0, None).numbers == {"output.tokens": 0}
    assert feedback_features("spam", math.nan).numbers == {}
    assert feedback_features(None, 1.0).categories == {}
    assert not looks_like_refusal("def cannot(): return 'sorry'")


def test_byte_tokens_of_both_families() -> None:
    assert byte_tokens_of({"<0x0A>": 3, "<0xFF>": 4, "a": 5, "ab": 6}) == [3, 4]
    assert byte_tokens_of({"a": 5, "Ġ": 1, "ab": 6}) == [1, 5]


def test_equal_counts_rank_by_id_and_tokens_outside_are_refused() -> None:
    vocabulary = Vocabulary.count([[0, 1], [2]], 4)
    ranks = [vocabulary.of(np.array([token]))[0].tolist().index(1) for token in range(3)]
    assert ranks == [0, 1, 2]
    with pytest.raises(ValueError, match="outside the vocabulary of 4"):
        Vocabulary.count([[4]], 4)


@pytest.mark.timed
def test_a_request_of_2_kb_costs_at_most_a_fifth_of_a_millisecond() -> None:
    generator = np.random.default_rng(0)
    text = "".join(chr(c) for c in generator.integers(32, 127, 2000))
    tokens = generator.integers(0, 4, 600).tolist()
    best = math.inf
    for _ in range(5):
        started = time.process_time()
        for _ in range(200):
            request_features(text, tokens, VOCABULARY)
        best = min(best, (time.process_time() - started) / 200)
    assert best < 0.0002
