"""Log-likelihoods of continuations, as lm_eval's hf backend gives them, with each prompt read once.

Continuations of one prompt are laid behind it in one row: each sees the prompt and itself, none sees another (a tree of
depth one in the attention mask, as in arXiv:2305.09781). A model that cannot take such a mask, or a prompt that has to
be cut, is scored row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.scoring.batches import plan
from slipway_jobs.evaluate.scoring.model import Scored, ScoringModel

_MASK_ELEMENTS = 1 << 28  # at most, of a batch: the mask grows with the square of the length

LogLikelihood = tuple[float, bool]  # nats, and whether greedy decoding would write exactly this


@dataclass(frozen=True)
class _Tree:
    """Continuations with one context in common. `places`: where their results belong."""

    context: list[int]
    continuations: list[list[int]]
    places: list[int]

    @property
    def length(self) -> int:
        """Tokens that are read: the last one of each continuation is only predicted."""
        return len(self.context) + sum(len(one) - 1 for one in self.continuations)


def log_likelihoods(model: ScoringModel, pairs: Sequence[tuple[str, str]]) -> list[LogLikelihood]:
    """Of every (context, continuation), in order. Raises UserError ContinuationTooLong, ContinuationEmpty."""
    return token_log_likelihoods(model, [model.encode_pair(context, text) for context, text in pairs])


def token_log_likelihoods(model: ScoringModel, pairs: Sequence[tuple[list[int], list[int]]]) -> list[LogLikelihood]:
    """The same for tokens. A pair that is too long loses tokens of its context, from the left."""
    results: list[LogLikelihood] = [(0.0, False)] * len(pairs)
    trees: dict[tuple[int, ...], _Tree] = {}
    alone: list[int] = []
    for place, (context, continuation) in enumerate(pairs):
        _check(model, context, continuation)
        if not model.shares_prompts or len(context) + len(continuation) > model.max_length + 1:
            alone.append(place)
            continue
        tree = trees.setdefault(tuple(context), _Tree(context, [], []))
        tree.continuations.append(continuation)
        tree.places.append(place)
    grown = [part for tree in trees.values() for part in _pruned(tree, model.batch_tokens)]
    longest = max((tree.length for tree in grown), default=1)
    budget = min(model.batch_tokens, max(longest, _MASK_ELEMENTS // longest))
    for batch in plan([tree.length for tree in grown], budget):
        _score_trees(model, [grown[place] for place in batch], results)
    sequences = [_cut(model, *pairs[place]) for place in alone]
    for place, scores in zip(alone, model.log_probabilities(sequences, greedy=True), strict=True):
        results[place] = scores.total, scores.greedy
    return results


def _check(model: ScoringModel, context: list[int], continuation: list[int]) -> None:
    if not continuation or not context:
        raise UserError("ContinuationEmpty", "a choice has no tokens of its own after its prompt; reword the choices")
    if len(continuation) > model.max_length:
        raise UserError(
            "ContinuationTooLong",
            f"a choice has {len(continuation)} tokens, the model is built for {model.max_length}; shorten the choices",
        )


def _cut(model: ScoringModel, context: list[int], continuation: list[int]) -> Scored:
    tokens = (context + continuation)[-(model.max_length + 1) :]
    return Scored(tokens, len(tokens) - len(continuation))


def _pruned(tree: _Tree, budget: int) -> list[_Tree]:
    """The tree in parts that fit the budget, each with at least one continuation."""
    parts: list[_Tree] = []
    for continuation, place in zip(tree.continuations, tree.places, strict=True):
        if parts and parts[-1].length + len(continuation) - 1 <= budget:
            parts[-1].continuations.append(continuation)
            parts[-1].places.append(place)
        else:
            parts.append(_Tree(tree.context, [continuation], [place]))
    return parts


def _score_trees(model: ScoringModel, trees: Sequence[_Tree], results: list[LogLikelihood]) -> None:
    """One forward pass over a batch of trees."""
    length = max(tree.length for tree in trees)
    tokens = torch.full((len(trees), length), model.pad_token, dtype=torch.long)
    positions = torch.zeros((len(trees), length), dtype=torch.long)
    # True: may look. Padding looks at itself, or its softmax would be over nothing.
    mask = torch.eye(length, dtype=torch.bool).repeat(len(trees), 1, 1)
    places: list[int] = []
    targets: list[int] = []
    for row, tree in enumerate(trees):
        depth = len(tree.context)
        tokens[row, :depth] = torch.tensor(tree.context)
        positions[row, :depth] = torch.arange(depth)
        mask[row, :depth, :depth] = torch.ones(depth, depth, dtype=torch.bool).tril()
        start = depth
        for continuation in tree.continuations:
            count = len(continuation) - 1
            part = slice(start, start + count)
            tokens[row, part] = torch.tensor(continuation[:-1], dtype=torch.long)
            positions[row, part] = torch.arange(depth, depth + count)
            mask[row, part, :depth] = True
            mask[row, part, part] = torch.ones(count, count, dtype=torch.bool).tril()
            places.extend(row * length + place for place in (depth - 1, *range(start, start + count)))
            targets.extend(continuation)
            start += count
    simple = all(len(tree.continuations) == 1 or tree.length == len(tree.context) for tree in trees)
    forward = {} if simple else {"attention_mask": mask.unsqueeze(1).to(model.device)}
    values, likeliest = model.pick(
        torch.tensor(places),
        torch.tensor(targets),
        True,
        input_ids=tokens.to(model.device),
        position_ids=None if simple else positions.to(model.device),
        use_cache=False,
        **forward,
    )
    start = 0
    for tree in trees:
        for continuation, place in zip(tree.continuations, tree.places, strict=True):
            part = slice(start, start + len(continuation))
            results[place] = float(values[part].sum()), bool(likeliest[part].all())
            start += len(continuation)
