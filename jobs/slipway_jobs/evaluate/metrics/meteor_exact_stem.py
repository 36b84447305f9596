"""METEOR (Banerjee and Lavie 2005) with two of its modules, exact and Porter stem, and so named.

The synonym and paraphrase modules need data of their own (WordNet), which a closed network does not have. Parameters:
alpha 0.9, beta 3, gamma 0.5. Words of equal stems match (equal words have equal stems). Of the alignments with the most
matches the one with the fewest chunks counts, as in METEOR 1.5 (Denkowski and Lavie 2014); it is found by a beam search
and exact as long as no more than `_BEAM` alternatives are open at once. nltk aligns greedily from the end instead: the
same number of matches, sometimes in more chunks. Where no stem comes twice in a text the two are the same, as tests
show.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.metric import MeanMetric, generation

_ALPHA, _BETA, _GAMMA = 0.9, 3.0, 0.5
_BEAM = 64  # alternatives
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
    matches, chunks = align([_stem(word) for word in answer], [_stem(word) for word in reference])
    if not matches:
        return 0.0
    precision, recall = matches / len(answer), matches / len(reference)
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    return float(mean * (1 - _GAMMA * (chunks / matches) ** _BETA))


def align(answer: Sequence[str], reference: Sequence[str]) -> tuple[int, int]:
    """Of the largest alignment of equal words: its matches, and the fewest chunks that it may have.

    A chunk is a run of matches that are neighbours in both texts, in the same order.
    """
    places: dict[str, list[int]] = {}
    for place, word in enumerate(reference):
        places.setdefault(word, []).append(place)
    left = Counter(word for word in answer if word in places)
    matches = sum(min(count, len(places[word])) for word, count in left.items())
    # Chunks of every state worth keeping: the places of the reference that are taken (bits), and the one that the
    # word before was matched with (-2: none).
    states: dict[tuple[int, int], int] = {(0, -2): 0}
    for word in answer:
        following: dict[tuple[int, int], int] = {}
        for (taken, last), chunks in states.items():
            free = [place for place in places.get(word, ()) if not taken >> place & 1]
            for place in free:
                _keep(following, (taken | 1 << place, place), chunks + (place != last + 1))
            if left[word] > len(free) or word not in places:  # else a match would be lost
                _keep(following, (taken, -2), chunks)
        left[word] -= 1
        states = following
        if len(states) > _BEAM:
            states = dict(sorted(states.items(), key=lambda state: state[1])[:_BEAM])
    return matches, min(states.values())


def _keep(states: dict[tuple[int, int], int], state: tuple[int, int], chunks: int) -> None:
    states[state] = min(chunks, states.get(state, chunks))


@functools.cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer  # noqa: PLC0415 - comes with rouge-score; only where it is asked for

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


@functools.lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return _stemmer()(word)
