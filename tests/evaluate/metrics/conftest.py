"""Scored examples, made up."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from slipway_api.evaljob import Slice
from slipway_api.metrics import MetricName, SuiteKind
from slipway_jobs.evaluate.examples import ChoiceScore, GenerationScore, LatencyScore, ModelingScore, ScoredExample
from slipway_jobs.evaluate.metrics import REGISTRY, MetricContext, Score


def context(kind: SuiteKind, *fields: str, seed: int = 0) -> MetricContext:
    return MetricContext(
        seed=seed, confidences=("0.9", "0.95"), slices=tuple(Slice(field=field) for field in fields), kind=kind
    )


def compute(name: MetricName, examples: Sequence[ScoredExample], kind: SuiteKind, *fields: str) -> Score:
    return REGISTRY[name].compute(examples, context(kind, *fields))


def documents(draws: random.Random, count: int) -> list[ScoredExample]:
    """Documents with token losses around 3 nats, correlated within each."""
    found = []
    for index in range(count):
        tokens = draws.randint(1, 50)
        mean = draws.gauss(3, 0.5)
        nll = sum(abs(draws.gauss(mean, 1)) for _ in range(tokens))
        found.append(ScoredExample(index, f"d{index}", modeling=ModelingScore(nll, tokens, 4 * tokens + 1)))
    return found


LABELS = ("ant", "bee", "cow")


def chosen(
    draws: random.Random, count: int, *, skill: float = 0.5, labels: tuple[str, ...] = LABELS
) -> list[ScoredExample]:
    """Choices; the right one is made likelier with probability `skill`. Field `team` is red or blue."""
    found = []
    for index in range(count):
        gold = draws.randrange(len(labels))
        likelihoods = [draws.gauss(-5, 2) for _ in labels]
        if draws.random() < skill:
            likelihoods[gold] = max(likelihoods) + 1
        score = ChoiceScore(tuple(likelihoods), tuple(draws.randint(1, 12) for _ in labels), labels, gold)
        team = draws.choice(["red", "blue"])
        found.append(ScoredExample(index, f"c{index}", fields={"team": team}, choice=score))
    return found


WORDS = "the cat sat on a mat, while two running dogs ran; they jumped! Jumping is fun".split()  # noqa: SIM905


def sentence(draws: random.Random, fewest: int = 0) -> str:
    return " ".join(draws.choice(WORDS) for _ in range(draws.randint(fewest, 12)))


def written(draws: random.Random, count: int, *, references: int | None = None) -> list[ScoredExample]:
    """Answers and one to three references, some of which agree in part."""
    found = []
    for index in range(count):
        texts = [sentence(draws, 1) for _ in range(references or draws.randint(1, 3))]
        answer = draws.choice([sentence(draws), texts[0], texts[0][: len(texts[0]) // 2], texts[-1].upper()])
        score = GenerationScore(answer, tuple(texts), len(answer.split()), "stop")
        found.append(ScoredExample(index, f"g{index}", generation=score))
    return found


def timed(draws: random.Random, count: int) -> list[ScoredExample]:
    found = []
    for index in range(count):
        gaps = tuple(draws.uniform(0.01, 0.02) for _ in range(draws.randint(1, 9)))
        score = LatencyScore(draws.uniform(0.1, 0.5), gaps, len(gaps) + 1)
        found.append(ScoredExample(index, f"l{index}", latency=score))
    return found


def close(left: float, right: float, tolerance: float = 1e-6) -> bool:
    return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
