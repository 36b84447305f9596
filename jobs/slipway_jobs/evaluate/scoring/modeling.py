"""Loss of documents with a sliding window (https://huggingface.co/docs/transformers/perplexity).

Each document is scored by itself, after the beginning-of-text token where the tokenizer has one; without one its first
token has no context and is not scored. Every other token is scored exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence

from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.examples import ModelingScore
from slipway_jobs.evaluate.scoring.model import Scored, ScoringModel

_LONGEST_DEFAULT = 2048


def window_of(model: ScoringModel, window: int | None, stride: int | None, field: str) -> tuple[int, int]:
    """Window and stride in tokens, after the defaults. Raises UserError WindowTooLong."""
    if window is not None and window > model.max_length:
        raise UserError(
            "WindowTooLong",
            f"{field}.windowTokens: {window} is more than the {model.max_length} tokens that the model is built for",
        )
    chosen = window or min(model.max_length, _LONGEST_DEFAULT)
    step = stride or max(1, chosen // 2)
    if step > chosen:
        raise UserError("WindowTooLong", f"{field}.strideTokens: {step} is more than the window of {chosen} tokens")
    return chosen, step


def windows(tokens: Sequence[int], window: int, stride: int) -> list[Scored]:
    """The windows of a document: at most `window` tokens each, begun every `stride` tokens.

    Each scores what the one before has not. Where window and stride are the same, a window takes one token more in
    front: the last one of the window before, which predicts its first.
    """
    found: list[Scored] = []
    end = 1  # tokens before here are scored; the first one cannot be
    begin = 0
    while end < len(tokens):
        stop = min(begin + window, len(tokens))
        if stop > end:  # a window of one token predicts nothing
            start = min(begin, end - 1)
            found.append(Scored(tokens[start:stop], end - start))
            end = stop
        begin += stride
    return found


def score_documents(model: ScoringModel, texts: Sequence[str], *, window: int, stride: int) -> list[ModelingScore]:
    """The loss of every document. Windows of all documents share batches."""
    parts: list[Scored] = []
    counts: list[int] = []
    for text in texts:
        cut = windows(_tokens(model, text), window, stride)
        parts.extend(cut)
        counts.append(len(cut))
    scores = iter(model.log_probabilities(parts))
    results = []
    for text, count in zip(texts, counts, strict=True):
        mine = [next(scores) for _ in range(count)]
        results.append(
            ModelingScore(
                nll=-sum(one.total for one in mine) + 0.0,
                tokens=sum(len(one.log_probabilities) for one in mine),
                bytes=len(text.encode()),
            )
        )
    return results


def _tokens(model: ScoringModel, text: str) -> list[int]:
    """As in training: a special token that is written out in a document is plain text."""
    tokenizer = model.tokenizer
    tokens = [int(t) for t in tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)]
    if tokenizer.bos_token_id is None:
        return tokens
    return [int(tokenizer.bos_token_id), *tokens]
