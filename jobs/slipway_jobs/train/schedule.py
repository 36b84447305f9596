"""The learning rate as a pure function of the step. It holds no state, so a resumed run cannot get it wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slipway_api.trainjob import Training


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to `peak`, then cosine to `peak * min_ratio` at the last step (arXiv:1608.03983), or constant."""

    peak: float
    steps: int
    warmup_steps: int
    min_ratio: float
    cosine: bool

    @classmethod
    def of(cls, training: Training, steps: int) -> LearningRate:
        """The schedule that a manifest asks for, over `steps` optimizer steps."""
        return cls(
            peak=float(training.optimizer.learning_rate),
            steps=steps,
            warmup_steps=training.schedule.warmup_steps,
            min_ratio=float(training.schedule.min_ratio),
            cosine=training.schedule.type == "cosine",
        )

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            # The first step already learns: a rate of zero would waste it.
            return self.peak * (step + 1) / self.warmup_steps
        if not self.cosine:
            return self.peak
        span = max(1, self.steps - 1 - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * done)))
