"""Careless writing: seeded, at the rate that is asked for, never more than words."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from slipway_jobs.evaluate.metrics import REGISTRY
from slipway_jobs.evaluate.perturb import perturb

from .conftest import chosen, close, compute, context

TEXT = (
    "The people who want to go running should have something to eat before 42 miles; that is what you would do. " * 20
)


@pytest.mark.parametrize("kind", ["typo", "case", "slang"])
def test_about_as_many_words_change_as_asked(kind: Any) -> None:
    changed = perturb(TEXT, [kind], 0.2, 0, "x")
    before, after = TEXT.split(), changed.split()
    assert len(before) == len(after)
    share = sum(a != b for a, b in zip(before, after, strict=True)) / len(before)
    assert 0.12 < share < 0.28
    assert re.findall(r"[0-9;.]+", TEXT)[:2] == ["42", ";"]
    assert "42" in changed


def test_the_same_seed_and_example_give_the_same_text() -> None:
    kinds: Any = ["slang", "typo"]
    assert perturb(TEXT, kinds, 0.3, 1, "x") == perturb(TEXT, list(reversed(kinds)), 0.3, 1, "x")
    assert len({perturb(TEXT, kinds, 0.3, seed, name) for seed in (1, 2) for name in "xy"}) == 4


@pytest.mark.parametrize("text", ["", "a I 1 22 ...", "äöü ß", "\n\t", "日本語 テキスト"])
def test_odd_texts(text: str) -> None:
    for seed in range(20):
        perturb(text, ["typo", "case", "slang"], 1.0, seed, "x")
    assert perturb("a I 1 22 ...", ["typo"], 1.0, 0, "x") == "a I 1 22 ..."


def test_every_word_changes_at_rate_one() -> None:
    changed = perturb("hello wonderful people", ["typo"], 1.0, 0, "x")
    assert not set(changed.split()) & {"hello", "wonderful", "people"} or "ll" in changed


def test_the_drop_is_the_lost_part_of_the_accuracy() -> None:
    from dataclasses import replace  # noqa: PLC0415

    plain, careless = chosen(random.Random(0), 200, skill=0.8), chosen(random.Random(1), 200, skill=0.2)
    examples = []
    for one, other in zip(plain, careless, strict=True):
        assert one.choice is not None
        assert other.choice is not None
        examples.append(replace(one, perturbed=replace(other.choice, gold=one.choice.gold)))
    changed = [replace(e, choice=e.perturbed) for e in examples]  # type: ignore[arg-type]
    before, after = (compute("accuracy", e, "multipleChoice").value for e in (examples, changed))
    drop = REGISTRY["robustnessDrop"].compute(examples, context("multipleChoice"))
    assert close(drop.value, (before - after) / before)
    assert drop.intervals["0.95"][0] < drop.value < drop.intervals["0.95"][1]
