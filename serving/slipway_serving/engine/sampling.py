"""Picks the next token of each row. What a row gets does not depend on the rows beside it.

Each answer has a generator of its own, seeded by its request, and draws one number a token. So an answer with a seed is
the same alone and in any company, as far as the logits are (float32 on a CPU: to the last bit or two).
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from slipway_serving.engine.generation import Generation, TokenLogprob

_HEAD = 256  # tokens that top p is looked for in first


class Sampler:
    """The choices of one answer."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._draws = random.Random(generation.seed)
        self._counts: dict[int, int] = {}  # generated tokens, for the penalties

    def pick(self, logits: Tensor, likeliest: int) -> tuple[int, TokenLogprob | None]:
        """The next token from logits [vocabulary] (float32, `likeliest` their argmax), and what is to be told of it."""
        asked = self._generation
        scores = self._penalized(logits)
        if asked.temperature > 0:
            token = self._draw(scores / asked.temperature)
        else:
            token = likeliest if scores is logits else int(scores.argmax())
        self._counts[token] = self._counts.get(token, 0) + 1
        return token, self._told(logits, token)

    def _penalized(self, logits: Tensor) -> Tensor:
        """OpenAI's penalties: for having been generated at all, and for each time that it was."""
        asked = self._generation
        if not self._counts or (asked.presence_penalty == 0 and asked.frequency_penalty == 0):
            return logits
        tokens = torch.tensor(list(self._counts), device=logits.device)
        times = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
        penalized = logits.clone()
        penalized[tokens] -= asked.presence_penalty + asked.frequency_penalty * times
        return penalized

    def _draw(self, scores: Tensor) -> int:
        """One token by its probability, among the top k and the smallest set of joint probability top p."""
        asked = self._generation
        point = self._draws.random()
        if asked.top_k == 0 and asked.top_p >= 1:
            cumulative = torch.softmax(scores.double(), -1).cumsum(-1)
            return min(int(torch.searchsorted(cumulative, point * cumulative[-1], right=True)), len(scores) - 1)
        if asked.top_k == 0 and (head := self._head(scores)) is not None:
            cumulative, tokens = head
        else:
            kept, tokens = torch.topk(scores, min(asked.top_k or len(scores), len(scores)))
            cumulative = torch.softmax(kept.double(), -1).cumsum(-1)
        if asked.top_p < 1:
            # A token belongs to the set while those before it do not reach top p; the first always does.
            size = 1 + int((cumulative[:-1] < asked.top_p).sum())
            cumulative, tokens = cumulative[:size], tokens[:size]
        place = int(torch.searchsorted(cumulative, point * cumulative[-1], right=True))
        return int(tokens[min(place, len(tokens) - 1)])

    def _head(self, scores: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cumulative probabilities of the likeliest tokens, if they reach top p: sorting the others would be idle."""
        if len(scores) <= _HEAD:
            return None
        kept, tokens = torch.topk(scores, _HEAD)
        total = torch.logsumexp(scores.double(), -1)
        cumulative = (kept.double() - total).exp().cumsum(-1)
        return (cumulative, tokens) if float(cumulative[-1]) >= self._generation.top_p else None

    def _told(self, logits: Tensor, token: int) -> TokenLogprob | None:
        wanted = self._generation.logprobs
        if wanted is None:
            return None
        logprobs = torch.log_softmax(logits.double(), -1)
        values, tokens = torch.topk(logprobs, min(wanted, len(logprobs))) if wanted else (logprobs[:0], logprobs[:0])
        top = tuple((int(t), float(v)) for t, v in zip(tokens, values, strict=True))
        return TokenLogprob(token, float(logprobs[token]), top)
