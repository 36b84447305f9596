"""METEOR (Banerjee and Lavie 2005) with two of its modules, exact and Porter stem, and so named.

The synonym and paraphrase modules need data of their own (WordNet), which a closed network does not have. Parameters:
alpha 0.9, beta 3, gamma 0.5. Words are aligned from the end of the answer, each with the last word of the reference
that is still free, first the equal ones, then those with equal stems: the order of nltk, whose scores the tests compare
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import MeanMetric, generation

_ALPHA, _BETA, _GAMMA = 0.9, 3.0, 0.5
_WORDS = re.compile(r"\w+|[^\w\s]")


class MeteorExactStem(MeanMetric):
    """Mean over examples of the best score against a reference; 0 to 1."""

    name = "meteorExactStem"

    def figure(self, example: ScoredExample) -> float:
        """The best score of the answer against a reference."""
        score = generation(example)
        answer = words(score.answer)
        return max(meteor(answer, words(reference)) for reference in score.references)


def words(text: str) -> list[str]:
    """Lower-case words, and punctuation marks one by one."""
    return _WORDS.findall(text.lower())


def meteor(answer: list[str], reference: list[str]) -> float:
    """The score of one answer against one reference, both as lower-case words."""
    matches = sorted(_aligned(answer, reference))
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(answer), len(matches) / len(reference)
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    breaks = sum((a + 1, r + 1) != following for (a, r), following in itertools.pairwise(matches))
    penalty = _GAMMA * ((breaks + 1) / len(matches)) ** _BETA
    return float(mean * (1 - penalty))


def _aligned(answer: list[str], reference: list[str]) -> list[tuple[int, int]]:
    """Pairs (place in the answer, place in the reference)."""
    left, right = list(enumerate(answer)), list(enumerate(reference))
    pairs = _match(left, right, lambda word: word)
    return pairs + _match(left, right, _stem)


def _match(
    left: list[tuple[int, str]], right: list[tuple[int, str]], form: Callable[[str], str]
) -> list[tuple[int, int]]:
    """Take the words of equal form out of both lists, from the end."""
    pairs = []
    for i in range(len(left) - 1, -1, -1):
        wanted = form(left[i][1])
        for j in range(len(right) - 1, -1, -1):
            if form(right[j][1]) == wanted:
                pairs.append((left.pop(i)[0], right.pop(j)[0]))
                break
    return pairs


@functools.cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer  # noqa: PLC0415 - comes with rouge-score; only where it is asked for

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


@functools.lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return _stemmer()(word)
