"""What is measured of a model before and after: perplexity, tokens per second, bytes.

Perplexity is over the same windows for both, each held-out token predicted once and weighted alike. Decoding is timed
in turns, one model after the other in the same process, and the speed-up is the median of the ratios of neighbouring
turns, so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from slipway_jobs.data import TokenDataset, eval_batches
from slipway_jobs.data.evaluation import IGNORE

_BATCH_TOKENS = 2048  # of a forward pass: the logits of more would not fit a CPU's cache


@dataclass(frozen=True)
class Effort:
    """How long decoding is timed: `rounds` turns of `new_tokens` tokens after a prompt of `prompt_tokens`."""

    prompt_tokens: int = 32
    new_tokens: int = 24
    rounds: int = 3


@dataclass(frozen=True)
class Decoding:
    """Tokens per second of both models (medians), and the median ratio of neighbouring turns."""

    before: float
    after: float
    speed_up: float


def size_bytes(directory: Path) -> int:
    """Bytes of a model directory's safetensors files."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


@torch.inference_mode()
def perplexity(lm: Any, dataset: TokenDataset, sequence_length: int, max_tokens: int) -> float:
    """exp of the mean loss per held-out token, over the first `max_tokens` of the stream (whole windows).

    Infinite where it overflows or the model's output is not finite.
    """
    total, count = 0.0, 0
    device = next(lm.parameters()).device
    for input_ids, labels in _windows(dataset, sequence_length, max_tokens):
        logits = lm(input_ids=input_ids.to(device), use_cache=False).logits[:, :-1]
        targets = labels[:, 1:].to(device)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        total += float(loss)
        count += int((targets != IGNORE).sum())
    mean = total / count
    return math.exp(mean) if math.isfinite(mean) and mean < 700 else math.inf


def _windows(dataset: TokenDataset, sequence_length: int, max_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, _BATCH_TOKENS // sequence_length)
    left = max_tokens
    for batch in eval_batches(dataset, sequence_length, rows):
        keep = min(len(batch.input_ids), max(1, left // sequence_length))
        yield torch.from_numpy(batch.input_ids[:keep]), torch.from_numpy(batch.labels[:keep])
        left -= keep * sequence_length
        if left < sequence_length:
            return


def decoding(before: Any, after: Any, prompt: Tensor, effort: Effort) -> Decoding:
    """Time both models in turns. `prompt` is [1, tokens] int64."""
    for lm in (before, after):
        _decode(lm, prompt, min(4, effort.new_tokens))  # kernels are chosen and caches are filled at the first call
    rates = [
        (_rate(before, prompt, effort.new_tokens), _rate(after, prompt, effort.new_tokens))
        for _ in range(effort.rounds)
    ]
    return Decoding(
        before=statistics.median(first for first, _ in rates),
        after=statistics.median(second for _, second in rates),
        speed_up=statistics.median(second / first for first, second in rates),
    )


def _rate(lm: Any, prompt: Tensor, new_tokens: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Tokens per second after the prompt has been read."""
    return new_tokens / _decode(lm, prompt, new_tokens, clock)


@torch.inference_mode()
def _decode(lm: Any, prompt: Tensor, new_tokens: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds to decode greedily, one token at a time, with a key/value cache."""
    device = next(lm.parameters()).device
    output = lm(input_ids=prompt.to(device), use_cache=True)
    token = output.logits[:, -1:].argmax(-1)
    _wait_for(device)
    started = clock()
    for _ in range(new_tokens):
        output = lm(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
    _wait_for(device)
    return clock() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
