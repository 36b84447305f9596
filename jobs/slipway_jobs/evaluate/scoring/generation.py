"""Text after a prompt: batched decoding with a key-value cache, greedy or sampled.

Each row draws from a generator of its own, seeded by its example, and logits become a token on the CPU, row by row, so
a draw does not depend on which rows share a batch. (A batched matrix product may differ from a single one in the last
bits, so two tokens that are likely to within those bits can still change places.) Prompts are padded on the left, so
that every row's next token is in the last place. Rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.examples import Finish
from slipway_jobs.evaluate.scoring.batches import plan
from slipway_jobs.evaluate.scoring.model import ScoringModel

_COMPACT_BELOW = 0.5  # part of the batch's rows that still write: below, the others are dropped from the cache


@dataclass(frozen=True)
class Decoding:
    """How to write. Temperature 0 takes the likeliest token."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What was written: the text before the end token or the first stop text, and the tokens that were generated."""

    text: str
    tokens: int
    finish: Finish


@dataclass
class _Row:
    """One prompt on its way."""

    place: int
    prompt: list[int]
    generator: torch.Generator
    written: list[int] = field(default_factory=list)


def generate(
    model: ScoringModel, prompts: Sequence[str], decoding: Decoding, seeds: Sequence[int], *, chat: bool = False
) -> list[Answer]:
    """Continue every prompt. `seeds[i]` decides what prompt i draws. With `chat`, a prompt is a user's turn.

    A prompt that is too long loses tokens from the left. Raises UserError ChatTemplateMissing, AnswerTooLong,
    PromptEmpty.
    """
    room = model.max_length - decoding.max_new_tokens
    if room < 1:
        raise UserError(
            "AnswerTooLong",
            f"maxNewTokens: {decoding.max_new_tokens} leaves no room for a prompt in the {model.max_length} tokens "
            "that the model is built for",
        )
    rows = []
    for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        tokens = (encode_chat(model, prompt) if chat else model.encode(prompt)) or [model.prefix_token]
        rows.append(_Row(place, tokens[-room:], torch.Generator().manual_seed(seed)))
    answers: list[Answer | None] = [None] * len(rows)
    for places in plan([len(row.prompt) + decoding.max_new_tokens for row in rows], model.batch_tokens):
        batch = [rows[place] for place in places]
        _write(model, batch, decoding, answers)
    return [answer for answer in answers if answer is not None]


def encode_chat(model: ScoringModel, prompt: str) -> list[int]:
    """Tokens of a conversation in which the user has said `prompt` and the model is to answer."""
    text = chat_text(model, [{"role": "user", "content": prompt}], add_generation_prompt=True)
    return model.encode(text, special=False)


def chat_text(model: ScoringModel, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """A conversation in the tokenizer's chat template. Raises UserError ChatTemplateMissing."""
    if not getattr(model.tokenizer, "chat_template", None):
        raise UserError(
            "ChatTemplateMissing",
            "chatTemplate: the model's tokenizer has no chat template; leave chatTemplate out, or add one to the "
            "tokenizer",
        )
    return str(
        model.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    )


def end_tokens(model: ScoringModel) -> frozenset[int]:
    """The tokens that end an answer."""
    found: set[int] = set()
    for owner in (getattr(model.lm, "generation_config", None), model.lm.config, model.tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)


@torch.inference_mode()
def _write(model: ScoringModel, rows: list[_Row], decoding: Decoding, answers: list[Answer | None]) -> None:
    """Decode one batch to its end."""
    ends = end_tokens(model)
    stream = Stream(model, [row.prompt for row in rows])
    alive = list(range(len(rows)))  # rows of the stream that still write
    logits = stream.logits
    while True:
        chosen = [0] * len(rows)
        for place in list(alive):
            row = rows[place]
            if logits[place].isnan().any():
                raise LogitsNotFinite(row.place)
            chosen[place] = _choose(logits[place], decoding, row.generator)
            row.written.append(chosen[place])
            answer = _ended(model, row, chosen[place] in ends, decoding)
            if answer is not None:
                answers[row.place] = answer
                alive.remove(place)
        if not alive:
            return
        if len(alive) < _COMPACT_BELOW * len(rows):
            stream.keep(alive)
            rows, chosen = [rows[place] for place in alive], [chosen[place] for place in alive]
            alive = list(range(len(rows)))
        logits = stream.step(chosen)


def _choose(logits: Tensor, decoding: Decoding, generator: torch.Generator) -> int:
    """The next token from one row's logits [vocabulary], float32 on the CPU."""
    if decoding.temperature == 0:
        return int(logits.argmax())
    scaled = logits.double() / decoding.temperature
    if 0 < decoding.top_k < len(scaled):
        lowest = torch.topk(scaled, decoding.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < lowest, -torch.inf)
    order = torch.sort(scaled, descending=True, stable=True)
    probabilities = order.values.softmax(dim=-1)
    total = probabilities.cumsum(dim=-1)
    if decoding.top_p < 1.0:
        # The smallest set whose joint probability reaches top_p: every token before which that much is not yet there.
        inside = int(((total - probabilities) < decoding.top_p).sum())
        total = total[:inside]
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * total[-1]
    place = min(int(torch.searchsorted(total, drawn, right=True)), len(total) - 1)
    return int(order.indices[place])


def _ended(model: ScoringModel, row: _Row, end: bool, decoding: Decoding) -> Answer | None:
    """The answer, if the last token was its last."""
    count = len(row.written)
    if end:
        return Answer(_decode(model, row.written[:-1]), count, "stop")
    if decoding.stop:
        # A token is at least one byte of text, so a stop text that has just been completed is in this many tokens.
        tail = row.written[-max(len(text.encode()) for text in decoding.stop) - 4 :]
        if any(text in _decode(model, tail) for text in decoding.stop):
            text = _decode(model, row.written)
            found = [place for stop in decoding.stop if (place := text.find(stop)) >= 0]
            if found:
                return Answer(text[: min(found)], count, "stop")
    if count >= decoding.max_new_tokens:
        return Answer(_decode(model, row.written), count, "length")
    return None


def _decode(model: ScoringModel, tokens: list[int]) -> str:
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Stream:
    """Rows that grow by one token at a time, with the keys and values of what was read. `logits` [rows, vocabulary],
    float32 on the CPU, are those of each row's next token.
    """

    def __init__(self, model: ScoringModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        length = max(len(prompt) for prompt in prompts)
        tokens = torch.full((len(prompts), length), model.pad_token, dtype=torch.long)
        self._mask = torch.zeros((len(prompts), length), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            self._mask[row, length - len(prompt) :] = 1
        self._cache: Any = None
        self.logits = self._forward(tokens)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each row; the logits of what follows."""
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(tokens), 1))], dim=1)
        self.logits = self._forward(torch.tensor(tokens, dtype=torch.long).unsqueeze(1))
        return self.logits

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        chosen = torch.tensor(rows, dtype=torch.long)
        self._mask = self._mask[chosen]
        self._cache.batch_select_indices(chosen.to(self._model.device))

    def _forward(self, tokens: Tensor) -> Tensor:
        model = self._model
        padded = bool((self._mask == 0).any())
        forward: dict[str, Any] = {}
        if padded:
            forward["attention_mask"] = self._mask.to(model.device)
        if model.takes_positions:
            positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
            forward["position_ids"] = positions.to(model.device)
        output = model.lm(
            input_ids=tokens.to(model.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **forward,
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1].float().cpu()
        return logits


class LogitsNotFinite(ArithmeticError):  # noqa: N818 - what it says is what it is
    """The logits of prompt number `row` hold NaN: no token can be chosen."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row
