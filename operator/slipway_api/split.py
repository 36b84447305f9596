"""How documents are divided into a part to train on and a part that is held out. The rule: slipway_jobs/data/split.py.

One shape for training and for evaluation, with its own seed: a TrainJob and an EvalJob that write the same split over
the same sources speak of the same parts, so what is measured was never trained on.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from slipway_api.base import ApiModel, Decimal, Rule, exactly_one


class Split(ApiModel):
    """Each document falls into one part, by a hash of the seed and its content: wherever it lies, in whatever order."""

    eval_fraction: Decimal | None = Field(default=None, description='Hold out about this part of the documents: "0.1".')
    folds: int | None = Field(default=None, ge=2, le=20, description="Divide the documents into so many parts.")
    fold: int | None = Field(default=None, ge=0, le=19, description="The part that is held out, from 0.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Decides which document falls into which part.")

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("evalFraction", "folds", message="set either evalFraction, or folds with fold"),
        Rule("has(self.folds) == has(self.fold)", "folds and fold belong together"),
        Rule("!has(self.folds) || !has(self.fold) || self.fold < self.folds", "fold must be below folds"),
        Rule(
            "!has(self.evalFraction) || (double(self.evalFraction) > 0.0 && double(self.evalFraction) < 1.0)",
            "evalFraction must be above 0 and below 1",
        ),
    )


class Sample(ApiModel):
    """A part of a source's documents: each by a hash of the seed and its content, independent of every split."""

    # The bound is in the pattern: a CEL rule here would be counted for each source of each suite.
    fraction: Annotated[str, Field(max_length=14, pattern=r"^(1|0\.0*[1-9][0-9]*)$")] = Field(
        description='Take about this part of the documents: "0.1". Above 0, at most 1.'
    )
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="Decides which. A smaller fraction of one seed takes a subset."
    )
