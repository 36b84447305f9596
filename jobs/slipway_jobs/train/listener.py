"""What the engine says while it trains, and to whom. The engine knows nothing of reports, Ray or terminals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from slipway_api.trainjob import CheckpointStatus, PlanStatus, Progress, SkippedCheckpoint, TrainedModel


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step. Loss in nats per token, tokens real ones, over all ranks; never padding."""

    step: int  # optimizer steps done, this one included
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float  # smoothed
    eta_seconds: float  # until the last step
    eval_loss: float | None  # the last one measured

    def progress(self) -> Progress:
        """As the API says it."""
        return Progress(
            step=self.step,
            steps=self.steps,
            summary=f"{self.step}/{self.steps}",
            loss=f"{self.loss:.4f}",
            eval_loss=None if self.eval_loss is None else f"{self.eval_loss:.4f}",
            learning_rate=f"{self.learning_rate:.3g}",
            tokens_per_second=round(self.tokens_per_second),
            eta_seconds=round(self.eta_seconds),
        )


class EngineListener(Protocol):
    """Who wants to know. Called on rank 0 only, between steps: every method must return at once."""

    @property
    def stop_message(self) -> str | None:
        """Why the run should stop at the next step boundary; None while it should go on."""

    def on_stage(self, stage: str) -> None:
        """Starting, Training or SavingModel (slipway_api.run.Report.stage)."""

    def on_plan(self, plan: PlanStatus) -> None:
        """What really runs, asserted on the wrapped model."""

    def on_resume(self, step: int, skipped: list[SkippedCheckpoint]) -> None:
        """Where training begins (0: at the beginning), and which checkpoints were passed over."""

    def on_step(self, metrics: StepMetrics) -> None:
        """An optimizer step is done."""

    def on_eval(self, step: int, loss: float, tokens: int) -> None:
        """The held-out loss after `step` steps."""

    def on_checkpoint(self, checkpoint: CheckpointStatus) -> None:
        """A checkpoint is committed."""

    def on_warning(self, reason: str, message: str) -> None:
        """Something failed that training survives, e.g. CheckpointNotSaved."""

    def on_model(self, model: TrainedModel) -> None:
        """The model is complete."""
