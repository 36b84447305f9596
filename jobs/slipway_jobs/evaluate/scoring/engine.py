"""From examples to scored examples: which part of the engine a suite needs, and what to make of a score that is none.

A score that is not finite ends its suite: averaging it away, or leaving it out, would make a broken model look good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from slipway_api.evaljob import Generation, Suite
from slipway_jobs.errors import UserError
from slipway_jobs.evaluate.dataset import ChoiceInput, Example, GenerationInput, Input, LatencyInput, ModelingInput
from slipway_jobs.evaluate.examples import (
    ChoiceScore,
    GenerationScore,
    LatencyScore,
    ModelingScore,
    Score,
    ScoredExample,
)
from slipway_jobs.evaluate.scoring.choices import log_likelihoods
from slipway_jobs.evaluate.scoring.generation import Decoding, LogitsNotFinite, generate
from slipway_jobs.evaluate.scoring.latency import measure
from slipway_jobs.evaluate.scoring.model import ScoringModel
from slipway_jobs.evaluate.scoring.modeling import score_documents, window_of
from slipway_jobs.evaluate.seeds import example_seed

LOSS_NOT_FINITE = "LossNotFinite"


def score(model: ScoringModel, suite: Suite, examples: Sequence[Example], *, seed: int) -> list[ScoredExample]:
    """Score the examples of a suite (or of a shard of it), in order.

    Raises UserError LossNotFinite naming the example, and what the parts of the engine raise.
    """
    plain = _scores(model, suite, examples, seed)
    changed = [replace(one, input=one.perturbed) for one in examples if one.perturbed is not None]
    careless = dict(zip([one.index for one in changed], _scores(model, suite, changed, seed), strict=True))
    return [
        _scored(example, value, careless.get(example.index)) for example, value in zip(examples, plain, strict=True)
    ]


def _scored(example: Example, value: Score, careless: Score | None) -> ScoredExample:
    return ScoredExample(
        index=example.index,
        id=example.id,
        fields=example.fields,
        modeling=value if isinstance(value, ModelingScore) else None,
        choice=value if isinstance(value, ChoiceScore) else None,
        generation=value if isinstance(value, GenerationScore) else None,
        latency=value if isinstance(value, LatencyScore) else None,
        prompt=_prompt(example.input),
        perturbed=careless,
    )


def _scores(model: ScoringModel, suite: Suite, examples: Sequence[Example], seed: int) -> Sequence[Score]:
    """The scores of the examples' inputs, all of them finite."""
    found = _of_kind(model, suite, examples, seed) if examples else []
    for example, value in zip(examples, found, strict=True):
        _check_finite(example, value)
    return found


def _of_kind(model: ScoringModel, suite: Suite, examples: Sequence[Example], seed: int) -> Sequence[Score]:
    inputs = [example.input for example in examples]
    if suite.language_modeling is not None:
        task = suite.language_modeling
        window, stride = window_of(model, task.window_tokens, task.stride_tokens, f"suite {suite.name}")
        return score_documents(model, [_as(ModelingInput, one).text for one in inputs], window=window, stride=stride)
    if suite.multiple_choice is not None:
        return _choices(model, [_as(ChoiceInput, one) for one in inputs])
    if suite.generation is not None:
        return _answers(model, suite.generation, examples, seed)
    assert suite.latency is not None
    return measure(
        model,
        [_as(LatencyInput, one).seed for one in inputs],
        prompt_tokens=suite.latency.prompt_tokens,
        new_tokens=suite.latency.new_tokens,
    )


def _choices(model: ScoringModel, inputs: Sequence[ChoiceInput]) -> list[ChoiceScore]:
    found = iter(log_likelihoods(model, [(one.prompt, choice) for one in inputs for choice in one.choices]))
    return [
        ChoiceScore(
            log_likelihoods=tuple(next(found)[0] for _ in one.choices),
            lengths=tuple(len(label.encode()) for label in one.labels),
            labels=one.labels,
            gold=one.gold,
        )
        for one in inputs
    ]


def _answers(model: ScoringModel, task: Generation, examples: Sequence[Example], seed: int) -> list[GenerationScore]:
    decoding = Decoding(
        max_new_tokens=task.max_new_tokens,
        temperature=float(task.temperature),
        top_k=task.top_k,
        top_p=float(task.top_p),
        stop=tuple(task.stop),
    )
    inputs = [_as(GenerationInput, example.input) for example in examples]
    seeds = [example_seed(seed, example.id) for example in examples]
    try:
        answers = generate(model, [one.prompt for one in inputs], decoding, seeds, chat=task.chat_template)
    except LogitsNotFinite as error:
        raise _not_finite(examples[error.row]) from error
    return [
        GenerationScore(answer=answer.text, references=one.references, tokens=answer.tokens, finish=answer.finish)
        for one, answer in zip(inputs, answers, strict=True)
    ]


def _check_finite(example: Example, value: Score) -> None:
    numbers: Sequence[float] = ()
    if isinstance(value, ModelingScore):
        numbers = (value.nll,)
    elif isinstance(value, ChoiceScore):
        numbers = value.log_likelihoods
    elif isinstance(value, LatencyScore):
        numbers = (value.first_token_seconds, *value.token_seconds)
    if not all(math.isfinite(number) for number in numbers):
        raise _not_finite(example)


def _not_finite(example: Example) -> UserError:
    return UserError(
        LOSS_NOT_FINITE,
        f"the model's loss on {example.where} (example {example.index}, id {example.id}) is not finite: its "
        "weights are damaged, or the text overflows what it computes in; try precision fp32",
    )


def _prompt(one: Input) -> str:
    return one.prompt if isinstance(one, (ChoiceInput, GenerationInput)) else ""


def _as(kind: type[Any], one: Input) -> Any:
    assert isinstance(one, kind)
    return one
