"""Documents to requests and to a profile; and the profile that a training run leaves beside its model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from slipway_jobs.drift.errors import ProfileError
from slipway_jobs.drift.profile import read_profile
from slipway_jobs.drift.reference import LONGEST, SHORTEST, TextReader, build_profile, prompts_of, tokenizer_digest


def backend(size: int = 300) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["a line of words and then another one " * 9],
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )
    return made


def documents(count: int) -> list[tuple[str, str]]:
    draws = np.random.default_rng(0)
    words = ["a", "line", "of", "words", "and", "then", "another", "one"]
    return [
        (str(number), "\n".join(" ".join(draws.choice(words, 8)) for _ in range(40)) + "\n") for number in range(count)
    ]


@given(st.text(alphabet=st.sampled_from("ab \n\ud800é"), max_size=4000), st.text(max_size=5))
def test_prompts_are_parts_of_the_document_in_order(text: str, key: str) -> None:
    place = 0
    for prompt in prompts_of(text, key):
        assert 0 < len(prompt) <= LONGEST
        assert not prompt.isspace()
        place = text.index(prompt, place) + len(prompt)
    assert list(prompts_of(text, key)) == list(prompts_of(text, key))


def test_lengths_are_spread_and_a_long_line_is_cut() -> None:
    text = "x" * 15 + "\n"
    lengths = [len(prompt) for prompt in prompts_of(text * 10_000, "k")]
    assert min(lengths) < 1.5 * SHORTEST
    assert max(lengths) > 0.9 * LONGEST
    assert [len(prompt) for prompt in prompts_of("y" * 5000, "k")] == [LONGEST]


def test_a_profile_is_the_same_every_time_and_holds_no_text(tmp_path: Path) -> None:
    one, two = (build_profile(backend(), documents(40)) for _ in range(2))
    assert one.digest == two.digest
    one.write(tmp_path)
    assert b"another" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    digest = tokenizer_digest(backend().get_vocab(with_added_tokens=True))
    assert read_profile(tmp_path, digest).digest == one.digest
    with pytest.raises(ProfileError, match="made with tokenizer"):
        read_profile(tmp_path, tokenizer_digest(backend(262).get_vocab(with_added_tokens=True)))


def test_too_few_documents_are_refused_with_the_count() -> None:
    with pytest.raises(ProfileError, match=r"give \d+ requests, a reference needs at least 100"):
        build_profile(backend(), documents(3))


def test_a_reader_takes_what_the_reference_never_had() -> None:
    profile = build_profile(backend(), documents(40))
    empty, strange = TextReader(backend(290), profile.vocabulary).features(["", "\x00\ufffd 漢字"])
    assert empty.embedding is None
    assert strange.embedding is not None
    assert np.isfinite(strange.embedding).all()
    assert strange.numbers["input.unseenTokens"] > 0
