"""A request or an answer as a few numbers, cheap enough to be taken from every one of them.

The caller gives the tokens (it has them anyway), and a perplexity or embedding if it has one. Nothing here keeps text.
All shares lie between 0 and 1. A text without characters or tokens has no shares: they are NaN, and counted as missing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RANK_BUCKETS = 20  # 0, 1, 2-3, 4-7, ... 2^17 and rarer; the last one is for tokens that the reference never had
LOSS_TOKENS = 128  # of a request, that its loss under the model is taken over
_RATIO_TOKENS = 100  # the type-token ratio falls with length, so it is taken over the first so many tokens

_OTHER, _LETTER, _UPPER, _DIGIT, _SPACE, _PUNCTUATION, _LEAD, _CONTINUATION = range(8)
_REFUSAL = re.compile(
    r"\b(i(?:'|’)?m sorry,? but|i (?:can(?:no|')t|can’t|am (?:not able|unable)|won(?:'|’)t be able)|"
    r"as an ai|i must decline|not able to (?:help|assist))\b",
    re.IGNORECASE,
)
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _classes() -> NDArray[np.uint8]:
    """The class of every byte of UTF-8."""
    table = np.full(256, _OTHER, dtype=np.uint8)
    for byte in range(128):
        character = chr(byte)
        if character.isupper():
            table[byte] = _UPPER
        elif character.isalpha():
            table[byte] = _LETTER
        elif character.isdigit():
            table[byte] = _DIGIT
        elif character.isspace():
            table[byte] = _SPACE
        elif character.isprintable():
            table[byte] = _PUNCTUATION
    table[0x80:0xC0] = _CONTINUATION
    table[0xC0:] = _LEAD
    return table


_CLASS_OF_BYTE = _classes()


class Vocabulary:
    """What the reference says about each token: how often it had it, and whether it stands for a single byte.

    `counts` of shape (vocabulary size,). `byte_tokens`, `unknown_tokens`: token ids.
    """

    def __init__(
        self, counts: NDArray[np.int64], byte_tokens: Iterable[int] = (), unknown_tokens: Iterable[int] = ()
    ) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        size = self.counts.size
        # Equal counts by id, so that the same counts give the same ranks everywhere.
        order = np.lexsort((np.arange(size), -self.counts))
        rank = np.empty(size, dtype=np.int64)
        rank[order] = np.arange(size)
        bucket = np.minimum(RANK_BUCKETS - 2, np.ceil(np.log2(rank + 1)).astype(np.int64))
        bucket[self.counts == 0] = RANK_BUCKETS - 1
        # Two places more than there are tokens: for ids that the tokenizer added later, and none.
        self._bucket = np.append(bucket, RANK_BUCKETS - 1)
        smoothed = (self.counts + 0.5) / (self.counts.sum() + 0.5 * (size + 1))
        self._surprisal = -np.log(np.append(smoothed, smoothed.min(initial=1.0)))
        self._bytes = np.zeros(size + 1)
        self._unknown = np.zeros(size + 1)
        self.byte_tokens = sorted({int(token) for token in byte_tokens})
        self.unknown_tokens = sorted({int(token) for token in unknown_tokens})
        self._bytes[self.byte_tokens] = 1
        self._unknown[self.unknown_tokens] = 1

    @classmethod
    def count(
        cls,
        documents: Iterable[Sequence[int]],
        size: int,
        byte_tokens: Iterable[int] = (),
        unknown_tokens: Iterable[int] = (),
    ) -> Vocabulary:
        """Count the tokens of documents. Raises ValueError for a token outside the vocabulary."""
        counts = np.zeros(size, dtype=np.int64)
        for document in documents:
            tokens = np.asarray(document, dtype=np.int64)
            if tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
                raise ValueError(f"token {int(tokens.max())} is outside the vocabulary of {size}")
            counts += np.bincount(tokens, minlength=size)
        return cls(counts, byte_tokens, unknown_tokens)

    def of(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], float, float, float]:
        """Rank buckets (counts), mean surprisal in nats, share of byte tokens, share of unknown tokens."""
        known = np.where((tokens >= 0) & (tokens < self.counts.size), tokens, self.counts.size)
        ranks = np.bincount(self._bucket[known], minlength=RANK_BUCKETS)
        count = tokens.size
        return (
            ranks,
            float(self._surprisal[known].sum()) / count,
            float(self._bytes[known].sum()) / count,
            float(self._unknown[known].sum()) / count,
        )


def byte_tokens_of(vocabulary: Mapping[str, int]) -> list[int]:
    """Ids of tokens that stand for one byte: `<0x0A>` where there is byte fallback, else those of one character.

    A byte-level tokenizer has no fallback; text that it was not made for falls apart into single characters instead.
    """
    fallback = [token_id for token, token_id in vocabulary.items() if _BYTE_TOKEN.fullmatch(token)]
    return sorted(fallback or [token_id for token, token_id in vocabulary.items() if len(token) == 1])


@dataclass
class Features:
    """One record. What is not known is left out; it is then counted as missing, not as zero."""

    numbers: dict[str, float] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    ranks: NDArray[np.int64] | None = None  # shape (RANK_BUCKETS,)
    embedding: NDArray[np.float32] | None = None  # shape (width,)

    def joined(self, other: Features) -> Features:
        """Both records as one: a request with its answer."""
        return Features(
            {**self.numbers, **other.numbers},
            {**self.categories, **other.categories},
            self.ranks if self.ranks is not None else other.ranks,
            self.embedding if self.embedding is not None else other.embedding,
        )


def request_features(
    text: str,
    tokens: Sequence[int] | NDArray[np.int64],
    vocabulary: Vocabulary,
    *,
    loss: float | None = None,
    embedding: NDArray[np.float32] | None = None,
) -> Features:
    """The features of what came in.

    `loss`: mean negative log-likelihood under the served model, nats per token, of the first LOSS_TOKENS tokens as the
    model reads them (with its tokenizer's own first token), each given those before it.
    """
    numbers = {"input.characters": float(len(text)), "input.tokens": float(len(tokens))}
    if text:
        numbers |= _character_shares(text)
    ranks = None
    if len(tokens):
        ids = np.asarray(tokens, dtype=np.int64)
        ranks, surprisal, byte_share, unknown_share = vocabulary.of(ids)
        first = ids[:_RATIO_TOKENS].tolist()
        numbers |= {
            "input.surprisal": surprisal,
            "input.byteTokens": byte_share,
            "input.unknownTokens": unknown_share,
            "input.unseenTokens": float(ranks[-1]) / ids.size,
            "input.typeTokenRatio": len(set(first)) / len(first),
            "input.charactersPerToken": len(text) / ids.size,
        }
    if loss is not None:
        numbers["input.loss"] = loss
    return Features(numbers, {}, ranks, embedding)


def _character_shares(text: str) -> dict[str, float]:
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    classes = np.bincount(_CLASS_OF_BYTE[data], minlength=8).tolist()
    length = len(text)
    return {
        "input.letters": (classes[_LETTER] + classes[_UPPER]) / length,
        "input.upperCase": classes[_UPPER] / length,
        "input.digits": classes[_DIGIT] / length,
        "input.spaces": classes[_SPACE] / length,
        "input.punctuation": classes[_PUNCTUATION] / length,
        "input.nonAscii": classes[_LEAD] / length,
    }


def answer_features(text: str, tokens: int, finish_reason: str | None, entropy: float | None = None) -> Features:
    """The features of what went out. `entropy`: of the model's distributions, nats, the mean over the tokens."""
    numbers = {"output.tokens": float(tokens)}
    if entropy is not None:
        numbers["output.entropy"] = entropy
    categories = {"output.refusal": "yes" if looks_like_refusal(text) else "no"}
    if finish_reason is not None:
        categories["output.finishReason"] = finish_reason
    return Features(numbers, categories)


def looks_like_refusal(text: str) -> bool:
    """Whether an answer begins by saying, in English, that there will be none. A rule of thumb, no classifier."""
    return _REFUSAL.search(text[:300]) is not None


def feedback_features(label: str | None = None, error: float | None = None) -> Features:
    """What came back: a label, and an error in [0, 1] (0: right) or any other number where larger is worse."""
    numbers = {} if error is None or not math.isfinite(error) else {"concept.error": error}
    return Features(numbers, {} if label is None else {"label": label})


def label_counts(features: Iterable[Features]) -> Counter[str]:
    """How often each label occurs."""
    return Counter(record.categories["label"] for record in features if "label" in record.categories)
