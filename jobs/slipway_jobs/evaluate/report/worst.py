"""The examples that went worst, and in which order they are shown. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slipway_jobs.evaluate.examples import ScoredExample
from slipway_jobs.evaluate.metrics.answers import token_f1

_MOST_TEXT = 1200


@dataclass(frozen=True)
class Shown:
    """An example for people: a heading, then named texts."""

    heading: str
    texts: tuple[tuple[str, str], ...]


def worst(examples: Sequence[ScoredExample], most: int = 10) -> list[Shown]:
    """The worst first; equal ones in their order. None for latencies."""
    ranked = [(_badness(example), example) for example in examples if example.score is not None]
    bad = [(badness, example) for badness, example in ranked if badness is not None]
    bad.sort(key=lambda pair: (-pair[0], pair[1].index))
    return [_shown(example) for badness, example in bad[:most] if badness > 0]


def _badness(example: ScoredExample) -> float | None:
    """How wrong it is: larger is worse, 0 is not wrong at all."""
    if example.modeling is not None:
        return example.modeling.nll / max(1, example.modeling.tokens)
    if example.choice is not None:
        return max(0.0, 1.0 - example.choice.probabilities[example.choice.gold]) if _wrong(example) else 0.0
    if example.generation is not None:
        score = example.generation
        return 1.0 - max((token_f1(score.answer, reference) for reference in score.references), default=0.0)
    return None


def _wrong(example: ScoredExample) -> bool:
    return example.choice is not None and example.choice.predicted != example.choice.gold


def _shown(example: ScoredExample) -> Shown:
    texts: list[tuple[str, str]] = [("prompt", _cut(example.prompt))] if example.prompt else []
    if example.modeling is not None:
        score = example.modeling
        heading = f"{score.nll / max(1, score.tokens):.3f} nats a token over {score.tokens:,} tokens"
    elif example.choice is not None:
        choice = example.choice
        sure = choice.probabilities
        heading = f"{sure[choice.predicted]:.0%} sure of a wrong choice, {sure[choice.gold]:.0%} of the right one"
        texts += [("chosen", _cut(choice.labels[choice.predicted])), ("right", _cut(choice.labels[choice.gold]))]
    else:
        assert example.generation is not None
        generation = example.generation
        best = max((token_f1(generation.answer, reference) for reference in generation.references), default=0.0)
        cut = ", cut off at its longest" if generation.finish == "length" else ""
        heading = f"token F1 {best:.2f}{cut}"
        texts += [("answer", _cut(generation.answer))]
        texts += [("reference", _cut(reference)) for reference in generation.references[:3]]
    fields = ", ".join(f"{name}={value}" for name, value in sorted(example.fields.items()))
    where = f"example {example.index}" + (f" ({fields})" if fields else "")
    return Shown(f"{where}: {heading}", tuple(texts))


def _cut(text: str) -> str:
    """The end of a long prompt is what the answer follows; so the beginning is left out."""
    return (
        text if len(text) <= _MOST_TEXT else f"[{len(text) - _MOST_TEXT:,} characters left out] … {text[-_MOST_TEXT:]}"
    )
