"""What the engine says about one example, and all that a metric may know of it.

Scores are the seam between the engine (which needs a model) and the metrics (which need none): they are stored as
parquet, so a metric can be computed again, by slice or against a baseline, without a forward pass. Nothing here
imports torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from slipway_api.metrics import SuiteKind

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class ModelingScore:
    """The loss of one document."""

    nll: float  # negative log-likelihood in nats, summed over the scored tokens
    tokens: int  # scored tokens
    bytes: int  # UTF-8 bytes of the document


@dataclass(frozen=True)
class ChoiceScore:
    """The log-likelihood of every choice after the same prompt."""

    log_likelihoods: tuple[float, ...]  # nats
    lengths: tuple[int, ...]  # UTF-8 bytes of each choice
    labels: tuple[str, ...]
    gold: int  # index of the right choice

    @property
    def predicted(self) -> int:
        """The likeliest choice; the first of equals."""
        return max(range(len(self.labels)), key=self.log_likelihoods.__getitem__)

    @property
    def predicted_normalized(self) -> int:
        """The likeliest choice per byte, as lm_eval's acc_bytes (and acc_norm, for ASCII); the first of equals."""
        per_byte = [
            likelihood / max(1, length) for likelihood, length in zip(self.log_likelihoods, self.lengths, strict=True)
        ]
        return max(range(len(self.labels)), key=per_byte.__getitem__)

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The softmax over the choices."""
        top = max(self.log_likelihoods)
        weights = [math.exp(likelihood - top) for likelihood in self.log_likelihoods]
        total = sum(weights)
        return tuple(weight / total for weight in weights)


@dataclass(frozen=True)
class GenerationScore:
    """What the model wrote."""

    answer: str
    references: tuple[str, ...]
    tokens: int  # generated, the end token or those of a stop text included
    finish: Finish  # "length": cut off at maxNewTokens


@dataclass(frozen=True)
class LatencyScore:
    """How long one request took, alone on its worker."""

    first_token_seconds: float
    token_seconds: tuple[float, ...]  # between one token and the next: tokens - 1 of them
    tokens: int


Score = ModelingScore | ChoiceScore | GenerationScore | LatencyScore


@dataclass(frozen=True)
class ScoredExample:
    """One example with its score: exactly one of the four kinds is set, the one of its suite.

    `perturbed` is the score of the same example with its prompt spelt carelessly (robustness), of the same kind.
    """

    index: int  # place in the suite, from 0
    id: str  # digest of the row: the same in every run on the same data
    fields: dict[str, str] = field(default_factory=dict)  # what slices cut by
    modeling: ModelingScore | None = None
    choice: ChoiceScore | None = None
    generation: GenerationScore | None = None
    latency: LatencyScore | None = None
    prompt: str = ""
    perturbed: Score | None = None
    error: str = ""  # why there is no score

    @property
    def score(self) -> Score | None:
        """The score, whichever kind it is; None where there is an error."""
        return self.modeling or self.choice or self.generation or self.latency


SCORE_FIELD: dict[SuiteKind, str] = {
    "languageModeling": "modeling",
    "multipleChoice": "choice",
    "generation": "generation",
    "latency": "latency",
}
"""The attribute of a ScoredExample that a suite's kind fills."""
assert set(SCORE_FIELD) == set(get_args(SuiteKind))
