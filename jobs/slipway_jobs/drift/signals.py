"""What is watched: each feature belongs to one of the four kinds of drift, by its name, and to one test, by its shape.

data        what comes in has changed
prediction  what the model answers has changed
label       what the answers should have been has changed
concept     the model is wrong more often, or its loss is larger
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from slipway_jobs.drift.comparisons import TestName


class Kind(StrEnum):
    """The four kinds of drift."""

    DATA = "data"
    PREDICTION = "prediction"
    LABEL = "label"
    CONCEPT = "concept"


TOKEN_RANKS = "input.tokenRanks"
EMBEDDING = "input.embedding"
LABEL = "label"
ERROR = "concept.error"
LOSS = "input.loss"

Shape = Literal["number", "category", "ranks", "embedding"]
FEW_VALUES = 6  # a number with no more bins than this is a category with an order: chi-square sees it better than KS


@dataclass(frozen=True)
class Signal:
    """One feature, its kind of drift, and the test that judges it."""

    name: str
    kind: Kind
    shape: Shape
    test: TestName


def kind_of(name: str) -> Kind:
    """The kind of drift that a feature's name stands for. Raises ValueError for a name without one."""
    family = name.partition(".")[0]
    kinds = {"input": Kind.DATA, "output": Kind.PREDICTION, "label": Kind.LABEL, "concept": Kind.CONCEPT}
    if family not in kinds:
        raise ValueError(f"{name!r} is no signal: its name must begin with one of {', '.join(kinds)}")
    return kinds[family]


def default_test(name: str, shape: Shape, bins: int) -> TestName:
    """The test for a feature of this name and shape with so many bins.

    A model that knows its requests better than those that were held out for the reference is no reason to renew it, and
    requests like its training documents are known better: of the loss, only a rise counts.
    """
    if name == LOSS:
        return "kolmogorovSmirnovGreater"
    if shape == "embedding":
        return "mmd"
    if shape == "ranks":
        return "jensenShannon"
    if shape == "category" or bins <= FEW_VALUES:
        return "chiSquare"
    return "kolmogorovSmirnov"
