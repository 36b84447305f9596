"""The reference profile: what the traffic of a model is compared with, written next to the model.

It holds a bounded random sample of the reference's records (features, never text) and the token counts of its
vocabulary. Bins, tests and thresholds follow from those, so they are computed, not stored. Two files: `profile.npz`
with the arrays, and `profile.json` with everything else and the digest of the arrays; it is written last, so a profile
without it does not exist.

The vocabulary is counted on one half of the documents and the features are taken from the other: token ranks, surprisal
and tokens never seen would otherwise look better on the reference than on any new text of the very same kind, and a
stationary stream would be called drift. `half_of` says which half a document belongs to.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.columns import Columns
from slipway_jobs.drift.comparisons import COMPARISONS
from slipway_jobs.drift.errors import ProfileError
from slipway_jobs.drift.features import RANK_BUCKETS, Features, Vocabulary
from slipway_jobs.drift.signals import EMBEDDING, TOKEN_RANKS, Signal, default_test, kind_of
from slipway_jobs.drift.sketches.categories import Categories, most_frequent
from slipway_jobs.drift.sketches.histogram import Histogram
from slipway_jobs.drift.sketches.rank_counts import RankCounts
from slipway_jobs.drift.sketches.reservoir import Reservoir
from slipway_jobs.drift.statistics.binning import quantile_edges
from slipway_jobs.drift.statistics.maximum_mean_discrepancy import squared_distances
from slipway_jobs.drift.summary import Summary

VERSION = 1
SAMPLE = 8192  # records
EMBEDDING_SAMPLE = 512
BINS = 32
LEAST = 100  # records that a signal of the reference needs
DOCUMENT, ARRAYS = "profile.json", "profile.npz"


def half_of(document: str, seed: int) -> bool:
    """Whether a document goes into the vocabulary (True) or into the records (False); by its id or text."""
    key = seed.to_bytes(8, "big", signed=True)
    return hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=1, key=key).digest()[0] < 128


@dataclass
class ReferenceProfile:
    """`tokenizer_digest`: of the tokenizer that made the tokens. `seen`: records that the sample was drawn from.

    `outputs`: what the model itself answered when the profile was made (reference.Model.outputs), for people to read;
    nothing is compared with it.
    """

    tokenizer_digest: str
    vocabulary: Vocabulary
    sample: Columns
    seen: int
    seed: int
    tests: dict[str, Any] = field(default_factory=dict)  # signal name to test name, where not the default
    outputs: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def layout(self) -> dict[str, Histogram | Categories | RankCounts]:
        """The sketches of the reference, by signal; those of windows have the same bins."""
        result: dict[str, Histogram | Categories | RankCounts] = {}
        for name, values in self.sample.numbers.items():
            finite = values[np.isfinite(values)]
            if finite.size >= LEAST:
                histogram = Histogram(quantile_edges(finite, BINS).tolist())
                histogram.add_many(values)
                result[name] = histogram
        for name, labels in self.sample.categories.items():
            counts = Counter(label for label in labels if label is not None)
            if counts.total() >= LEAST:
                categories = Categories(most_frequent(counts))
                categories.add_many(labels)
                result[name] = categories
        if self.sample.ranks is not None and int(self.sample.ranks.any(1).sum()) >= LEAST:
            ranks = RankCounts(RANK_BUCKETS)
            ranks.add_many(self.sample.ranks)
            result[TOKEN_RANKS] = ranks
        return result

    @cached_property
    def embeddings(self) -> NDArray[np.float64]:
        """At most EMBEDDING_SAMPLE rows."""
        if self.sample.embeddings is None:
            return np.zeros((0, 0))
        finite = self.sample.embeddings[np.isfinite(self.sample.embeddings).all(1)]
        return finite[:EMBEDDING_SAMPLE].astype(np.float64)

    @cached_property
    def bandwidth(self) -> float:
        """The median distance between two embeddings of the reference: one kernel for all windows."""
        squared = squared_distances(self.embeddings, self.embeddings)
        return float(np.sqrt(np.median(squared[np.triu_indices(len(squared), 1)])))

    @cached_property
    def signals(self) -> list[Signal]:
        """What can be watched, by name. Raises ProfileError for nothing, or `tests` that do not fit."""
        found = []
        for name, sketch in sorted(self.layout.items()):
            shape = "number" if isinstance(sketch, Histogram) else "category"
            shape = "ranks" if isinstance(sketch, RankCounts) else shape
            test = self.tests.get(name) or default_test(name, shape, sketch.counts.size)  # type: ignore[arg-type]
            found.append(Signal(name, kind_of(name), shape, test))  # type: ignore[arg-type]
        if len(self.embeddings) >= LEAST:
            found.append(Signal(EMBEDDING, kind_of(EMBEDDING), "embedding", "mmd"))
        if not found:
            raise ProfileError(f"no feature is present in {LEAST} records of the reference.", "Add documents.")
        _check_tests(self.tests, found)
        return found

    @cached_property
    def digest(self) -> str:
        """Of the whole profile, 16 hexadecimal digits: alarms and saved states carry it."""
        return hashlib.sha256(self._arrays() + self._heading().encode()).hexdigest()[:16]

    def summary(self) -> Summary:
        """An empty window that can be compared with this reference."""
        return Summary.empty(self.layout, self.seed)

    def check_tokenizer(self, digest: str) -> None:
        """Raises ProfileError if traffic is tokenized by another tokenizer: nothing about tokens would compare."""
        if digest != self.tokenizer_digest:
            raise ProfileError(
                f"the reference profile was made with tokenizer {self.tokenizer_digest}, the model has {digest}.",
                "Build the profile anew from a data set, with the tokenizer of the model that is served.",
            )

    def write(self, directory: Path) -> None:
        """Write both files, the document last. The directory must exist."""
        arrays = self._arrays()
        (directory / ARRAYS).write_bytes(arrays)
        document = json.loads(self._heading()) | {"arrays": hashlib.sha256(arrays).hexdigest()}
        part = directory / f"{DOCUMENT}.part"
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        part.replace(directory / DOCUMENT)

    def _heading(self) -> str:
        document: dict[str, Any] = {
            "version": VERSION,
            "tokenizer": self.tokenizer_digest,
            "seen": self.seen,
            "seed": self.seed,
            "rows": self.sample.rows,
            "tests": self.tests,
            "byteTokens": self.vocabulary.byte_tokens,
            "unknownTokens": self.vocabulary.unknown_tokens,
            "categories": self.sample.categories,
            "outputs": self.outputs,
        }
        return json.dumps(document, sort_keys=True)

    def _arrays(self) -> bytes:
        arrays: dict[str, Any] = {"vocabulary": self.vocabulary.counts}
        arrays |= {f"number:{name}": values for name, values in self.sample.numbers.items()}
        if self.sample.ranks is not None:
            arrays["ranks"] = self.sample.ranks.astype(np.int32)
        if self.sample.embeddings is not None:
            arrays["embeddings"] = self.embeddings.astype(np.float32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()


def read_profile(directory: Path, tokenizer_digest: str | None = None) -> ReferenceProfile:
    """Read a profile; one of another tokenizer is refused. Raises ProfileError, also where it is absent or damaged."""
    place = directory / DOCUMENT
    try:
        document = json.loads(place.read_text(encoding="utf-8"))
        arrays = (directory / ARRAYS).read_bytes()
    except FileNotFoundError as error:
        raise ProfileError(
            f"no reference profile: {error.filename} is missing.", "Build one from a data set."
        ) from error
    except (OSError, ValueError) as error:
        raise ProfileError(f"{place} cannot be read: {error}.") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        version = document.get("version") if isinstance(document, dict) else None
        raise ProfileError(f"{place} has version {version!r}, this Slipway reads {VERSION}.", "Build the profile anew.")
    if hashlib.sha256(arrays).hexdigest() != document.get("arrays"):
        raise ProfileError(f"{directory / ARRAYS} is not the file that {DOCUMENT} names.", "Build the profile anew.")
    try:
        profile = _profile(document, arrays)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ProfileError(f"{place} is damaged: {error!r}.", "Build the profile anew.") from error
    if tokenizer_digest is not None:
        profile.check_tokenizer(tokenizer_digest)
    return profile


def _profile(document: dict[str, Any], data: bytes) -> ReferenceProfile:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        sample = Columns(
            int(document["rows"]),
            {name[7:]: arrays[name] for name in arrays.files if name.startswith("number:")},
            {name: list(values) for name, values in document["categories"].items()},
            arrays["ranks"].astype(np.int64) if "ranks" in arrays.files else None,
            arrays["embeddings"] if "embeddings" in arrays.files else None,
        )
        vocabulary = Vocabulary(arrays["vocabulary"], document["byteTokens"], document["unknownTokens"])
    return ReferenceProfile(
        document["tokenizer"],
        vocabulary,
        sample,
        int(document["seen"]),
        int(document["seed"]),
        document["tests"],
        dict(document["outputs"]),
    )


_ORDERED = {"kolmogorovSmirnov", "kolmogorovSmirnovGreater", "wasserstein"}


def _check_tests(tests: dict[str, Any], signals: list[Signal]) -> None:
    by_name = {signal.name: signal for signal in signals}
    for name, test in tests.items():
        if name not in by_name:
            raise ProfileError(f"tests: {name!r} is no signal of this profile; it has {', '.join(by_name)}.")
        if test not in COMPARISONS or by_name[name].shape == "embedding":
            raise ProfileError(f"tests.{name}: {test!r} cannot judge it; choose one of {', '.join(COMPARISONS)}.")
        if by_name[name].shape != "number" and test in _ORDERED:
            raise ProfileError(f"tests.{name}: {test} needs numbers with an order, and {name} has categories.")
        if by_name[name].shape == "ranks" and test == "chiSquare":
            raise ProfileError(f"tests.{name}: chiSquare needs independent counts; tokens of one text are not.")


class ProfileBuilder:
    """Takes the records of a reference one by one; memory is bounded by the sample.

    `vocabulary`: counted on the documents for which `half_of` is True; `add` then gets the features of the others.
    """

    def __init__(self, tokenizer_digest: str, vocabulary: Vocabulary, seed: int = 0, sample: int = SAMPLE) -> None:
        self._tokenizer_digest, self._vocabulary, self._seed = tokenizer_digest, vocabulary, seed
        self._reservoir = Reservoir(sample, seed)

    def add(self, identity: str, record: Features) -> None:
        """Offer one record under its id; the same id counts once."""
        self._reservoir.add(identity, record)

    def build(self, tests: dict[str, Any] | None = None, outputs: dict[str, Any] | None = None) -> ReferenceProfile:
        """The profile. Raises ProfileError with fewer than LEAST records, or for tests that do not fit."""
        records = self._reservoir.items()
        if len(records) < LEAST:
            raise ProfileError(f"a reference needs at least {LEAST} records, not {len(records)}.", "Add documents.")
        sample = Columns.of(records)
        profile = ReferenceProfile(
            self._tokenizer_digest,
            self._vocabulary,
            sample,
            self._reservoir.seen,
            self._seed,
            tests or {},
            outputs or {},
        )
        _ = profile.signals  # raises where nothing can be watched
        return profile
