"""How fast a model answers: one request at a time, greedy, never ending early, after a warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.examples import LatencyScore
from slipway_jobs.evaluate.scoring.generation import Stream
from slipway_jobs.evaluate.scoring.model import ScoringModel

_WARM_UP = 2  # requests that are not measured: they fill caches and choose kernels


def measure(
    model: ScoringModel,
    seeds: Sequence[int],
    *,
    prompt_tokens: int,
    new_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[LatencyScore]:
    """One score for each seed, which draws the tokens of its prompt. Raises UserError AnswerTooLong."""
    if prompt_tokens + new_tokens > model.max_length:
        raise UserError(
            "AnswerTooLong",
            f"latency: {prompt_tokens} promptTokens and {new_tokens} newTokens are more than the {model.max_length} "
            "that the model is built for",
        )
    for seed in seeds[:_WARM_UP]:
        _request(model, seed, prompt_tokens, new_tokens, clock)
    return [_request(model, seed, prompt_tokens, new_tokens, clock) for seed in seeds]


@torch.inference_mode()
def _request(
    model: ScoringModel, seed: int, prompt_tokens: int, new_tokens: int, clock: Callable[[], float]
) -> LatencyScore:
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(0, model.vocabulary, (prompt_tokens,), generator=generator).tolist()
    start = clock()
    stream = Stream(model, [prompt])
    token = int(stream.logits[0].argmax())  # on the CPU by now, so the device has finished
    last = clock()
    first, gaps = last - start, []
    for _ in range(new_tokens - 1):
        token = int(stream.step([token])[0].argmax())
        now = clock()
        gaps.append(now - last)
        last = now
    return LatencyScore(first_token_seconds=first, token_seconds=tuple(gaps), tokens=new_tokens)
