"""What a training run says to the people who read its log."""

from __future__ import annotations

import time
from collections.abc import Callable

from slipway_api.run import Outcome, RunEnd
from slipway_api.trainjob import Progress
from slipway_jobs.console import RunConsole, duration
from slipway_jobs.reporting import RunState

__all__ = ["Console", "duration"]


class Console(RunConsole):
    """The lines of a training run."""

    hints = {  # noqa: RUF012
        Outcome.USER_ERROR: "trying again cannot help: correct the manifest or what it points at",
        Outcome.OUT_OF_MEMORY: "the next attempt needs a smaller plan",
        Outcome.INFRASTRUCTURE: "another attempt continues from the last checkpoint",
        Outcome.PREEMPTED: "another attempt continues from the last checkpoint",
    }

    def __init__(
        self, started: float, *, now: Callable[[], float] = time.time, write: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(started, now=now, write=write)
        self._shown = RunState()
        self._timeline_shown = False

    def show(self, state: RunState) -> None:
        """Print what is new in a state."""
        before, self._shown = self._shown, state
        if state.stage != before.stage:
            self.line(f"stage: {state.stage}")
        if state.plan is not None and state.plan != before.plan:
            plan = state.plan
            self.line(
                f"plan: {plan.strategy} on {plan.world_size} x {plan.device} ({plan.backend}), "
                f"{plan.parameters:,} parameters, {plan.parameters_per_rank:,} per rank, "
                f"{plan.train_tokens:,} training tokens"
            )
        for skipped in state.skipped_checkpoints:
            if skipped not in before.skipped_checkpoints:
                self.line(f"checkpoint {skipped.uri} skipped: {skipped.reason}")
        if state.resumed_from_step is not None and state.resumed_from_step != before.resumed_from_step:
            self.line(f"resumed from the checkpoint of step {state.resumed_from_step}")
        self._show_timeline(state)
        if state.progress is not None:
            self._show_progress(state.progress, before.progress)
        if state.checkpoint is not None and state.checkpoint != before.checkpoint:
            self.line(f"checkpoint: step {state.checkpoint.step} at {state.checkpoint.uri}")

    def _quality(self, end: RunEnd) -> str:
        model = end.model
        if model is None or model.perplexity is None:
            return ""
        was = "" if model.initial_perplexity is None else f", was {model.initial_perplexity}"
        return f"; held-out perplexity {model.perplexity}{was}"

    def _show_progress(self, progress: Progress, before: Progress | None) -> None:
        if progress.eval_loss is not None and progress.eval_loss != (before.eval_loss if before else None):
            self.line(f"step {progress.step:,}/{progress.steps:,}  held-out loss {progress.eval_loss}")
        if progress.step == 0 or (before is not None and progress.step == before.step):
            return
        if not self._due(last=progress.step >= progress.steps):
            return
        parts = [f"step {progress.step:,}/{progress.steps:,}"]
        if progress.loss is not None:
            parts.append(f"loss {progress.loss}")
        if progress.tokens_per_second is not None:
            parts.append(f"{progress.tokens_per_second:,} tokens/s")
        if progress.eta_seconds is not None:
            parts.append(f"ETA {duration(progress.eta_seconds)}")
        self.line("  ".join(parts))

    def _show_timeline(self, state: RunState) -> None:
        """Once, after the first step: how long each phase of the start-up took after the one before."""
        if self._timeline_shown or "first step" not in state.timeline:
            return
        self._timeline_shown = True
        parts, last = [], self._started
        for name in sorted(state.timeline, key=lambda name: state.timeline[name]):
            parts.append(f"{name} {state.timeline[name] - last:.1f}s")
            last = state.timeline[name]
        self.line(f"start-up: {', '.join(parts)}, in all {last - self._started:.1f}s")
