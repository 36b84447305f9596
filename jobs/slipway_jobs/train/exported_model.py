"""What an exported model says of its own requests: how well it knows them, and how it goes on (drift/reference.Model).

The files are read as a Deployment reads them, because what is served is what they hold; the model of the training run
may be spread over ranks by now. It is done by rank 0 while the others wait, so the work is bounded: large models on
small devices do less of it, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from slipway_jobs.drift.features import LOSS_TOKENS
from slipway_jobs.drift.profile import LEAST
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.scoring.generation import Stream, end_tokens
from slipway_jobs.evaluate.scoring.model import Scored, ScoringModel

LOSSES = 256  # requests whose loss is taken, at most
ANSWERS = 16  # prompts that are gone on with, at most
ANSWER_TOKENS = 32
_WORK = {"cpu": 1e13, "cuda": 1e16}  # floating point operations for all losses: a minute or two
_BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}  # of one forward pass
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_DIGITS = 4  # what is behind them depends on the number of threads, and the files have a digest


class ExportedModel:
    """The model in a directory, loaded when it is first asked: float32 on a CPU, bfloat16 on a GPU."""

    def __init__(self, directory: Path, *, gpu: bool = False) -> None:
        self._directory, self._gpu = directory, gpu

    @cached_property
    def _model(self) -> ScoringModel:
        precision, tokens = ("bf16", _BATCH_TOKENS["cuda"]) if self._gpu else ("fp32", _BATCH_TOKENS["cpu"])
        return ScoringModel.load(
            self._directory,
            "the exported model",
            batch_tokens=tokens,
            precision=precision,  # type: ignore[arg-type] # one of two literals
            gpu=self._gpu,
        )

    def losses(self, texts: Sequence[str]) -> list[float]:
        """Nats per token, of the first texts, at most LOSSES. Raises UserError where it takes too long, as loading."""
        model = self._model
        work = 2.0 * model.parameters * LOSS_TOKENS
        count = min(LOSSES, int(_WORK[model.device.type] / work))
        if count < LEAST:
            raise UserError(
                "ModelTooLarge",
                f"{model.parameters:,} parameters are too many to take {LEAST} losses on a {model.device.type}",
            )
        sequences = [self._tokens(text) for text in texts[:count]]
        scored = model.log_probabilities([Scored(tokens, 1) for tokens in sequences if len(tokens) > 1])
        values = iter(scores.total for scores in scored)
        return [
            round(-next(values) / (len(tokens) - 1), _DIGITS) if len(tokens) > 1 else float("nan")
            for tokens in sequences
        ]

    @torch.inference_mode()
    def outputs(self, texts: Sequence[str]) -> dict[str, Any]:
        """Answers to the first ANSWERS texts, drawn at temperature 1: `tokens` of each and `entropy` of each token.

        Both as quantiles (`quantiles` says which); entropies in nats, of the distribution that a token was drawn from.
        """
        model = self._model
        room = model.max_length - ANSWER_TOKENS
        prompts = [tokens[-room:] for text in texts[:ANSWERS] if (tokens := self._tokens(text))]
        if room < 1 or not prompts:
            return {}
        ends, generator = end_tokens(model), torch.Generator().manual_seed(0)
        stream = Stream(model, prompts)
        lengths, writing = [0] * len(prompts), set(range(len(prompts)))
        entropies: list[float] = []
        for _ in range(ANSWER_TOKENS):
            distributions = torch.distributions.Categorical(logits=stream.logits.double())
            sure = distributions.entropy().tolist()  # type: ignore[no-untyped-call]
            chosen = torch.multinomial(distributions.probs, 1, generator=generator)[:, 0].tolist()
            for row in writing:
                lengths[row] += 1
                entropies.append(sure[row])
            writing = {row for row in writing if chosen[row] not in ends}
            if not writing:
                break
            stream.step(chosen)
        return {
            "prompts": len(prompts),
            "maxTokens": ANSWER_TOKENS,
            "ended": len(prompts) - len(writing),
            "quantiles": list(_QUANTILES),
            "tokens": _quantiles(lengths),
            "entropy": _quantiles(entropies),
        }

    def _tokens(self, text: str) -> list[int]:
        """As the engine reads a prompt: control tokens in it are text."""
        tokens = self._model.tokenizer.encode(text, add_special_tokens=True, split_special_tokens=True)
        return [int(token) for token in tokens[: min(LOSS_TOKENS, self._model.max_length)]]


def _quantiles(values: Sequence[float]) -> list[float]:
    found = torch.quantile(torch.tensor(values, dtype=torch.float64), torch.tensor(_QUANTILES, dtype=torch.float64))
    return [round(value, _DIGITS) for value in found.tolist()]
