"""The harness's requests on our engine: cut into parts, answered by any number of workers, put together again.

A call's requests become parts of about equal work (`EngineScorer`), and a part is answered where a model is (`answer`).
Whoever has the workers gives `ask`, which hands out parts and brings the answers back in order; with one model in this
process that is a loop. Parts depend on the requests alone, so any number of workers gives the same answers.

Tokens are made as the harness's own Hugging Face backend makes them, and too long contexts lose the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.benchmark_model import GenerationSettings

if TYPE_CHECKING:
    from slipway_jobs.evaluate.scoring.model import Scored, ScoringModel

_PARTS = 32  # at most; few enough to keep batches full
_LEAST = 32 << 10  # characters of a part


@dataclass(frozen=True)
class Part:
    """Some of a call's requests, from number `first` on. It travels to a worker, so it holds plain values only."""

    kind: Literal["pairs", "texts", "prompts"]
    items: tuple[Any, ...]  # (context, continuation), or text
    first: int = 0
    settings: GenerationSettings | None = None


def answer(model: ScoringModel, part: Part) -> list[Any]:
    """The answers to a part, in order: (nats, greedy), nats, or text. Raises what the engine raises."""
    from slipway_jobs.evaluate.scoring import choices, generation  # noqa: PLC0415 - torch, where there is a model
    from slipway_jobs.evaluate.seeds import example_seed  # noqa: PLC0415

    if part.kind == "pairs":
        return choices.log_likelihoods(model, part.items)
    if part.kind == "texts":
        windows = [list(_windows(model, text)) for text in part.items]
        scores = iter(model.log_probabilities([window for listed in windows for window in listed]))
        return [sum(next(scores).total for _ in listed) for listed in windows]
    settings = part.settings
    assert settings is not None
    decoding = generation.Decoding(
        settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p, settings.stop
    )
    seeds = [example_seed(settings.seed, f"benchmark:{part.first + i}") for i in range(len(part.items))]
    try:
        return [one.text for one in generation.generate(model, part.items, decoding, seeds)]
    except generation.LogitsNotFinite as error:
        raise UserError(
            "LossNotFinite",
            f"model: its logits after prompt {part.first + error.row} are not numbers; check the weights, or set "
            "spec.precision to fp32",
        ) from error


class EngineScorer:
    """A `Scorer` whose parts are answered by `ask`, which keeps their order. `tokenizer` renders chats."""

    def __init__(self, ask: Callable[[Sequence[Part]], Sequence[Sequence[Any]]], tokenizer: Any) -> None:
        self._ask = ask
        self._tokenizer = tokenizer
        self.tokenizer_name = str(getattr(tokenizer, "name_or_path", "")).replace("/", "__")

    @classmethod
    def of(cls, model: ScoringModel) -> EngineScorer:
        """With one model, in this process."""
        return cls(lambda parts: [answer(model, part) for part in parts], model.tokenizer)

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """See Scorer. Continuations of one context stay in one part: the engine reads the context once."""
        starts = [i for i, pair in enumerate(pairs) if i == 0 or pair[0] != pairs[i - 1][0]]
        return self._spread("pairs", pairs, starts, [len(context) + len(text) for context, text in pairs])

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """See Scorer."""
        return self._spread("texts", texts, range(len(texts)), [len(text) for text in texts])

    def generate(self, prompts: Sequence[str], settings: GenerationSettings) -> list[str]:
        """See Scorer."""
        sizes = [len(prompt) + 4 * settings.max_new_tokens for prompt in prompts]
        return self._spread("prompts", prompts, range(len(prompts)), sizes, settings)

    def apply_chat_template(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """See Scorer."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise UserError(
                "ChatTemplateMissing",
                "benchmark.chatTemplate: the model's tokenizer has no chat template; leave chatTemplate out, or add "
                "one to the tokenizer",
            )
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _spread(
        self,
        kind: Literal["pairs", "texts", "prompts"],
        items: Sequence[Any],
        starts: Sequence[int],
        sizes: Sequence[int],
        settings: GenerationSettings | None = None,
    ) -> list[Any]:
        parts = [Part(kind, tuple(items[begin:end]), begin, settings) for begin, end in cuts(starts, sizes)]
        return [one for answers in self._ask(parts) for one in answers]


def cuts(starts: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of parts of about equal size that begin at one of `starts` (rising, the first 0)."""
    target = max(sum(sizes) / _PARTS, _LEAST)
    begin = size = 0
    for start, end in pairwise([*starts, len(sizes)]):
        size += sum(sizes[start:end])
        if size >= target:
            yield begin, end
            begin, size = end, 0
    if begin < len(sizes):
        yield begin, len(sizes)


def _windows(model: ScoringModel, text: str) -> Iterator[Scored]:
    """A text in windows that score each token once: the first after the prefix token, each other after the last tokens
    of the one before (one of them, but more for the last window, which is filled up to the model's length)."""
    from slipway_jobs.evaluate.scoring.model import Scored  # noqa: PLC0415

    tokens, length = model.encode(text), model.max_length
    if tokens:
        yield Scored([model.prefix_token, *tokens[:length]], 1)
    for begin in range(length, len(tokens), length):
        end = min(begin + length, len(tokens))
        window = tokens[end - length - 1 : end]
        yield Scored(window, len(window) - (end - begin))
