"""Writes a text as careless people do: typos, shouting and small letters, slang. Seeded, word by word.

What becomes of a text depends on (seed, the example's identity, the text) alone, so every worker and every run makes
the same of it. Words are changed, never added or taken away; digits and markup stay as they are.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from typing import Literal

Kind = Literal["typo", "case", "slang"]

_WORD = re.compile(r"[^\W\d_]{2,}")

# Spellings that everybody reads and few texts in a training set have.
_SLANG = {
    "and": "n",
    "are": "r",
    "because": "cuz",
    "before": "b4",
    "for": "4",
    "going": "goin",
    "great": "gr8",
    "have": "hav",
    "later": "l8r",
    "love": "luv",
    "okay": "k",
    "people": "ppl",
    "please": "plz",
    "should": "shud",
    "something": "smth",
    "thanks": "thx",
    "that": "dat",
    "the": "da",
    "though": "tho",
    "through": "thru",
    "to": "2",
    "tonight": "2nite",
    "want": "wanna",
    "what": "wat",
    "with": "wit",
    "without": "w/o",
    "would": "wud",
    "you": "u",
    "your": "ur",
}


def perturb(text: str, kinds: Sequence[Kind], rate: float, seed: int, identity: str) -> str:
    """The text with about `rate` of its words changed, each in one of these ways.

    `identity` names the example, so that equal texts of two examples are changed differently.
    """
    digest = hashlib.sha256(f"perturb:{seed}:{identity}:{text}".encode()).digest()
    draws = random.Random(digest)
    ways = [_WAYS[kind] for kind in sorted(set(kinds))]

    def change(match: re.Match[str]) -> str:
        word = match[0]
        if draws.random() >= rate:
            return word
        return draws.choice(ways)(word, draws)

    return _WORD.sub(change, text)


def _typo(word: str, draws: random.Random) -> str:
    """Two letters swapped, one lost, or one doubled; a first letter stays."""
    place = draws.randrange(1, len(word))
    way = draws.randrange(3)
    if way == 0 and place + 1 < len(word):
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if way == 1 and len(word) > 2:
        return word[:place] + word[place + 1 :]
    return word[:place] + word[place] + word[place:]


def _case(word: str, draws: random.Random) -> str:
    """All capitals, or none; a word that has none shouts."""
    return word.upper() if word == word.lower() or draws.random() < 0.5 else word.lower()


def _slang(word: str, draws: random.Random) -> str:
    """The spelling that people use when they chat; else without its vowels but the first letter, or a dropped g."""
    known = _SLANG.get(word.lower())
    if known is not None:
        return known
    if word.endswith("ing") and len(word) > 4:
        return word[:-1]
    shorter = word[0] + re.sub("[aeiou]", "", word[1:])
    return shorter if len(shorter) > 2 else word + draws.choice("zx")


_WAYS: dict[str, Callable[[str, random.Random], str]] = {"typo": _typo, "case": _case, "slang": _slang}
