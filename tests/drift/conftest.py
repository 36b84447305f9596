"""A small world: texts of two kinds of words, a vocabulary, and a reference profile of 2,000 records."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from slipway_jobs.drift.features import Features, Vocabulary, answer_features, feedback_features, request_features
from slipway_jobs.drift.profile import ProfileBuilder, ReferenceProfile

TOKENIZER = "sha256:one"
VOCABULARY_SIZE = 256
Maker = Callable[..., Features]


def make_record(
    generator: np.random.Generator,
    vocabulary: Vocabulary,
    *,
    length: float = 60.0,
    error_rate: float = 0.05,
    labels: tuple[float, ...] = (0.5, 0.5),
    shift: float = 0.0,
) -> Features:
    """One request with answer and feedback; a token is a letter. `shift` moves the embedding."""
    count = 1 + int(generator.poisson(length))
    ids = np.minimum(VOCABULARY_SIZE - 1, generator.geometric(0.08, count) - 1)
    text = "".join(chr(97 + token % 26) if token % 7 else " " for token in ids.tolist())
    embedding = (generator.normal(size=8) + shift).astype(np.float32)
    request = request_features(text, ids, vocabulary, embedding=embedding)
    answer = answer_features("Yes.", 1 + int(generator.poisson(30)), "stop", float(generator.gamma(4, 0.3, 8).mean()))
    label = "abcd"[int(generator.choice(len(labels), p=labels))]
    return request.joined(answer).joined(feedback_features(label, float(generator.random() < error_rate)))


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    generator = np.random.default_rng(1)
    documents = [np.minimum(VOCABULARY_SIZE - 1, generator.geometric(0.08, 60) - 1).tolist() for _ in range(500)]
    return Vocabulary.count(documents, VOCABULARY_SIZE, byte_tokens=[3], unknown_tokens=[5])


@pytest.fixture(scope="session")
def profile(vocabulary: Vocabulary) -> ReferenceProfile:
    generator = np.random.default_rng(2)
    builder = ProfileBuilder(TOKENIZER, vocabulary, seed=3)
    for number in range(2000):
        builder.add(f"document-{number}", make_record(generator, vocabulary))
    return builder.build()


@pytest.fixture
def record(vocabulary: Vocabulary) -> Maker:
    """Makes records of the reference's kind, or shifted ones."""
    generator = np.random.default_rng(4)
    return lambda **shift: make_record(generator, vocabulary, **shift)
