"""What lm-evaluation-harness sees of a model: text in, scores and text out.

The harness asks in strings, so tokens, batches, devices and workers stay behind `Scorer`, which the scoring engine
implements. That is also how a benchmark is sharded: the harness runs once, in one process, with all requests of a kind
in one call, and the scorer spreads them over the run's workers. The harness's own way (one copy per rank, each with a
part of the documents) would load every data set once per worker and needs collectives that nothing else here needs.

Importing this module does not import lm_eval: that takes two seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slipway_jobs.errors import UserError

# What transformers takes for a neutral value; a task may spell these out without asking for anything.
_NEUTRAL = {
    "num_beams": (1, None),
    "repetition_penalty": (1, 1.0, None),
    "num_return_sequences": (1, None),
    "use_cache": (True, None),
    "length_penalty": (1, 1.0, None),
    "early_stopping": (False, None),
}
_DEFAULT_NEW_TOKENS = 256  # as the harness's own backends
_SHOWN = 80  # characters of a prompt in an error


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How to write. Temperature 0 is greedy; the i-th prompt of a call draws from (seed, i), whatever its batch."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    stop: tuple[str, ...] = ()  # the answer ends before the first of these
    seed: int = 0


class Scorer(Protocol):
    """A model that scores and writes text. Answers come in the order of the questions."""

    tokenizer_name: str

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> Sequence[tuple[float, bool]]:
        """For each (context, continuation): log-likelihood of the continuation in nats, and whether greedy decoding
        would write it. An empty context stands for the tokenizer's BOS (else EOS) token."""
        ...

    def rolling(self, texts: Sequence[str]) -> Sequence[float]:
        """The log-likelihood of each whole text in nats: every token once, in disjoint windows, the first after the
        tokenizer's BOS (else EOS) token."""
        ...

    def generate(self, prompts: Sequence[str], settings: GenerationSettings) -> Sequence[str]:
        """What the model writes after each prompt."""
        ...

    def apply_chat_template(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """The conversation in the tokenizer's chat template. Raises UserError where it has none."""
        ...


def harness_model(scorer: Scorer, *, seed: int, progress: Callable[[int], None] = lambda _: None) -> Any:
    """An `lm_eval.api.model.LM` over the scorer. `progress` is told how many requests more have been answered.

    Its methods raise UserError LossNotFinite for a log-likelihood that is not a number, and BenchmarkUnsupported for a
    generation setting that the engine does not know.
    """
    from lm_eval.api.model import LM  # noqa: PLC0415

    class HarnessModel(LM):  # type: ignore[misc]
        """One process, one model; rank 0 of 1 for the harness."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            pairs = [(str(request.args[0]), str(request.args[1])) for request in requests]
            scores = [(float(score), bool(greedy)) for score, greedy in scorer.loglikelihoods(pairs)]
            _check(([score for score, _ in scores]), [context + continuation for context, continuation in pairs])
            progress(len(scores))
            return scores

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            texts = [str(request.args[0]) for request in requests]
            scores = [float(score) for score in scorer.rolling(texts)]
            _check(scores, texts)
            progress(len(scores))
            return scores

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            groups: dict[GenerationSettings, list[int]] = {}
            for index, request in enumerate(requests):
                groups.setdefault(generation_settings(request.args[1], seed=seed), []).append(index)
            answers: dict[int, str] = {}
            for settings, indices in groups.items():
                texts = scorer.generate([str(requests[index].args[0]) for index in indices], settings)
                answers.update(zip(indices, texts, strict=True))
                progress(len(indices))
            return [answers[index] for index in range(len(requests))]

        @property
        def tokenizer_name(self) -> str:
            return scorer.tokenizer_name

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return None  # only the harness's own tracker asks for its text

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return scorer.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)

    return HarnessModel()


def generation_settings(asked: dict[str, Any], *, seed: int) -> GenerationSettings:
    """A task's `generation_kwargs` in our words, read as the harness's Hugging Face backend reads them.

    Raises UserError BenchmarkUnsupported for a setting that would be ignored.
    """
    from lm_eval.models.utils import normalize_gen_kwargs  # noqa: PLC0415

    known = dict(normalize_gen_kwargs(asked, _DEFAULT_NEW_TOKENS))
    until = known.pop("until") or []
    new_tokens = int(known.pop("max_gen_toks"))
    sampled = bool(known.pop("do_sample", False))
    # transformers samples at temperature 1 where a task only says do_sample: true
    temperature = float(known.pop("temperature", 0.0)) if "temperature" in asked or not sampled else 1.0
    known.pop("temperature", None)
    top_k = int(known.pop("top_k", None) or 0)
    top_p = float(known.pop("top_p", None) or 1.0)
    for name, value in known.items():
        if name not in _NEUTRAL or value not in _NEUTRAL[name]:
            raise UserError(
                "BenchmarkUnsupported",
                f"benchmark: the task sets generation_kwargs.{name} = {value!r}, which this evaluation cannot honour; "
                "it knows do_sample, temperature, top_k, top_p, until and max_gen_toks",
            )
    sampled = sampled and temperature > 0.0
    return GenerationSettings(
        max_new_tokens=new_tokens,
        temperature=temperature if sampled else 0.0,
        top_k=top_k if sampled else 0,
        top_p=top_p if sampled else 1.0,
        stop=tuple(str(text) for text in (until if isinstance(until, list) else [until]) if text),
        seed=seed,
    )


def _check(scores: Sequence[float], texts: Sequence[str]) -> None:
    """Not a number would lose every comparison silently: argmax over it is the first choice."""
    for score, text in zip(scores, texts, strict=True):
        if math.isnan(score):
            raise UserError(
                "LossNotFinite",
                f"model: the log-likelihood of {text[-_SHOWN:]!r} is not a number; check the weights, or set "
                "spec.precision to fp32",
            )
