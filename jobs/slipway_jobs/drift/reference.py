"""From documents to a reference profile: what the requests to a language model are expected to look like.

A model that was trained on documents is asked to go on with pieces of such documents, so the requests of the reference
are runs of whole lines cut from them (`prompts_of`): 64 to 768 characters, short ones more often. Where the traffic is
of another kind (chats, questions), give documents that are like it: lengths and token statistics are compared as well.

Both sides of the comparison are read by the same `TextReader`, with the tokenizer of the model and without its special
tokens. Its embedding is a random projection of the token counts (Johnson and Lindenstrauss 1984): it costs microseconds
and needs no model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.errors import ProfileError
from slipway_jobs.drift.features import Features, Vocabulary, byte_tokens_of, request_features
from slipway_jobs.drift.profile import LEAST, ProfileBuilder, ReferenceProfile, half_of
from slipway_jobs.drift.sketches.reservoir import Reservoir

FOLDER = "reference"
"""Below a model's directory: profile.json and profile.npz."""
PROMPTS = 4096  # that a profile is made of, at most
MOST_DOCUMENTS = 20_000
MOST_CHARACTERS = 4_000_000  # of all documents together: about a second
SHORTEST, LONGEST = 64, 768  # characters of a prompt
_LEAST_OTHERS = 500  # requests of documents that are not held out
_EMBEDDING_WIDTH = 32
_SEED = 0


def tokenizer_digest(vocabulary: Mapping[str, int]) -> str:
    """Of which token has which id: files may be written anew, and are the same tokenizer still."""
    text = json.dumps(sorted((int(token_id), token) for token, token_id in vocabulary.items()))
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def prompts_of(text: str, key: str) -> Iterator[str]:
    """Cut a document into the requests that it stands for. `key`, its name, decides the lengths: the same every time.

    Whole lines until the drawn length is reached; a line that is longer than LONGEST is cut at its end.
    """
    draws = random.Random(key)
    piece, wanted = "", 0.0
    for line in text.splitlines(keepends=True):
        if not piece:
            wanted = math.exp(draws.uniform(math.log(SHORTEST), math.log(LONGEST)))
        piece += line
        if len(piece) >= wanted:
            if not piece.isspace():
                yield piece[:LONGEST]
            piece = ""
    if len(piece) >= SHORTEST and not piece.isspace():  # the rest is cut short by the end, as no request is
        yield piece[:LONGEST]


class TextReader:
    """Texts to features. `backend`: a tokenizers.Tokenizer without truncation and padding."""

    def __init__(self, backend: Any, vocabulary: Vocabulary) -> None:
        self._backend, self._vocabulary = backend, vocabulary
        generator = np.random.default_rng(_SEED)
        shape = (vocabulary.counts.size + 1, _EMBEDDING_WIDTH)  # one more for ids that the vocabulary does not have
        self._directions: NDArray[np.float32] = generator.standard_normal(shape, dtype=np.float32)

    def features(self, texts: Sequence[str], losses: Sequence[float | None] | None = None) -> list[Features]:
        """Of each text, in order. `losses`: under the model, where they are known (features.request_features)."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        known = [None] * len(texts) if losses is None else losses
        return [self._of(text, encoding.ids, loss) for text, encoding, loss in zip(texts, encoded, known, strict=True)]

    def _of(self, text: str, ids: list[int], loss: float | None) -> Features:
        embedding = None
        if ids:
            known = np.minimum(np.asarray(ids, dtype=np.int64), len(self._directions) - 1)
            embedding = self._directions[known].mean(0)
        return request_features(text, ids, self._vocabulary, loss=loss, embedding=embedding)


class Model(Protocol):
    """The model that a profile is for, as far as a profile needs it."""

    def losses(self, texts: Sequence[str]) -> list[float]:
        """Of the first so many texts that it has time for: see features.request_features."""
        ...

    def outputs(self, texts: Sequence[str]) -> dict[str, Any]:
        """Statistics of its answers to some of these texts, as JSON."""
        ...


def build_profile(
    backend: Any,
    documents: Iterable[tuple[str, str]],
    *,
    counts: NDArray[np.int64] | None = None,
    held_out: Iterable[tuple[str, str]] = (),
    model: Model | None = None,
) -> ReferenceProfile:
    """The profile of documents, each with its name.

    `counts`: of the tokens of other documents, for the vocabulary; without it the vocabulary is counted on one half of
    `documents` and the requests are cut from the other half. `held_out`: further documents; half of the requests are
    theirs, however few they are. Reads at most MOST_DOCUMENTS and MOST_CHARACTERS of each. `model`: asked for the
    losses of held-out requests, where there are LEAST of them; the others it has learnt, so new requests of the very
    same kind would seem worse. How many requests have a loss is compared with nothing. Raises ProfileError where there
    are fewer than LEAST requests.
    """
    names = backend.get_vocab(with_added_tokens=True)
    size = max(names.values(), default=0) + 1
    apart = _requests(_few(held_out), PROMPTS // 2)
    others, vocabulary_texts = [], []
    for name, text in _few(documents):
        if counts is None and half_of(name, _SEED):
            vocabulary_texts.append(text)
        else:
            others.append((name, text))
    together = _requests(others, max(_LEAST_OTHERS, apart.size) if apart.size else PROMPTS)
    texts: list[str] = [*apart.items(), *together.items()]
    if len(texts) < LEAST:
        raise ProfileError(
            f"the documents give {len(texts)} requests, a reference needs at least {LEAST}.", "Add documents."
        )
    if counts is None:
        counts = np.zeros(size, dtype=np.int64)
        for encoding in backend.encode_batch_fast(vocabulary_texts, add_special_tokens=False):
            counts += np.bincount(encoding.ids, minlength=size)[:size]
    vocabulary = Vocabulary(_of_size(counts, size), byte_tokens_of(names), _unknown(backend, names))
    losses: list[float | None] = [None] * len(texts)
    outputs: dict[str, Any] = {}
    if model is not None and apart.size >= LEAST:
        known = model.losses(apart.items())
        losses[: len(known)] = known
        outputs = model.outputs(apart.items())
    builder = ProfileBuilder(tokenizer_digest(names), vocabulary, _SEED, PROMPTS)
    for number, record in enumerate(TextReader(backend, vocabulary).features(texts, losses)):
        builder.add(str(number), record)
    return builder.build(outputs=outputs)


def _few(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    left = MOST_CHARACTERS
    for name, text in itertools.islice(documents, MOST_DOCUMENTS):
        yield name, text[:left]
        left -= len(text)
        if left <= 0:
            return


def _requests(documents: Iterable[tuple[str, str]], most: int) -> Reservoir:
    requests = Reservoir(most, _SEED)
    for name, text in documents:
        for place, prompt in enumerate(prompts_of(text, name)):
            requests.add(f"{name}#{place}", prompt)
    return requests


def _of_size(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.pad(counts, (0, size - counts.size)) if counts.size < size else counts[:size]


def _unknown(backend: Any, names: Mapping[str, int]) -> list[int]:
    unknown = str(getattr(backend.model, "unk_token", None))
    return [names[unknown]] if unknown in names else []
