"""What a watcher of drift is told beside the text: how sure the model was, and how well it knew the prompt.

Both are of the model's own distribution, before temperature and penalties, in nats. They cost a pass over logits that
are there anyway (entropy), and the output layer over the prompt's hidden states (loss); a row that does not ask pays
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slipway_jobs.drift.features import LOSS_TOKENS

# Logits per block, in elements: the prompts that one pass reads can have more of them than the memory has room for.
_BLOCK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}


def entropies(logits: Tensor) -> Tensor:
    """Of the distributions with these logits [rows, vocabulary], float32: nats [rows]."""
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def losses(
    hidden: Tensor,
    prompts: Mapping[int, tuple[int, ...]],
    logits: Callable[[Tensor], Tensor],
    vocabulary: int,
) -> dict[int, float]:
    """Mean negative log-likelihood of a prompt's tokens, each given those before it, nats per token; by row.

    `hidden` [rows, places, width] is what the decoder made of all prompts of the pass, `prompts` are those that ask, by
    row. The first LOSS_TOKENS tokens count; a prompt of a single token has no loss.
    """
    read = {row: prompt[:LOSS_TOKENS] for row, prompt in prompts.items() if len(prompt) > 1}
    if not read:
        return {}
    targets = torch.tensor([token for prompt in read.values() for token in prompt[1:]], device=hidden.device)
    places = torch.cat([torch.arange(len(prompt) - 1) + row * hidden.shape[1] for row, prompt in read.items()])
    states, places = hidden.flatten(0, 1), places.to(hidden.device)
    size = max(64, _BLOCK_ELEMENTS.get(hidden.device.type, 1 << 22) // vocabulary)
    parts = []
    for some, wanted in zip(torch.split(places, size), torch.split(targets, size), strict=True):
        scores = logits(states[some])
        parts.append(scores.logsumexp(-1) - scores.gather(1, wanted[:, None])[:, 0])
    by_row = torch.split(torch.cat(parts).double(), [len(prompt) - 1 for prompt in read.values()])
    return dict(zip(read, torch.stack([one.mean() for one in by_row]).tolist(), strict=True))
