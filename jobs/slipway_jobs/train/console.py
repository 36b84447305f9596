"""What a run says to the people who read its log: one line per event, progress at a human cadence.

Programs read reports and the metrics history instead. It only formats and prints; the driver decides what is true.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from slipway_api.run import Outcome, RunEnd
from slipway_api.trainjob import Progress
from slipway_jobs.reporting import RunState

# How long to wait for the next progress line: often at first, when people look, and rarely in a long run.
_CADENCE = ((60.0, 2.0), (600.0, 10.0), (float("inf"), 60.0))

_HINTS = {
    Outcome.USER_ERROR: "trying again cannot help: correct the manifest or what it points at",
    Outcome.OUT_OF_MEMORY: "the next attempt needs a smaller plan",
    Outcome.INFRASTRUCTURE: "another attempt continues from the last checkpoint",
    Outcome.PREEMPTED: "another attempt continues from the last checkpoint",
}


class Console:
    """Prints lines that begin with the seconds since `started` (Unix time). Threads may share it."""

    def __init__(
        self, started: float, *, now: Callable[[], float] = time.time, write: Callable[[str], None] | None = None
    ) -> None:
        self._started = started
        self._now = now
        self._write = write or (lambda text: print(text, flush=True))  # noqa: T201 - this is the log
        self._shown = RunState()
        self._said: set[str] = set()
        self._next_progress = 0.0
        self._timeline_shown = False

    def line(self, text: str) -> None:
        """One line, with the seconds since the start."""
        self._write(f"[{self._now() - self._started:8.1f}s] {text}")

    def once(self, text: str) -> None:
        """A line that is not worth repeating."""
        if text not in self._said:
            self._said.add(text)
            self.line(text)

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

    def end(self, end: RunEnd) -> None:
        """The last line: what happened and what to do."""
        if end.outcome is Outcome.SUCCEEDED:
            model = end.model
            quality = ""
            if model is not None and model.perplexity is not None:
                quality = f"; held-out perplexity {model.perplexity}"
                if model.initial_perplexity is not None:
                    quality += f", was {model.initial_perplexity}"
            self.line(f"Succeeded: {end.message}{quality}")
        else:
            self.line(f"{end.outcome.value} ({end.reason}): {end.message} [{_HINTS[end.outcome]}]")

    def _show_progress(self, progress: Progress, before: Progress | None) -> None:
        if progress.eval_loss is not None and progress.eval_loss != (before.eval_loss if before else None):
            self.line(f"step {progress.step:,}/{progress.steps:,}  held-out loss {progress.eval_loss}")
        if progress.step == 0 or (before is not None and progress.step == before.step):
            return
        now = self._now()
        if now < self._next_progress and progress.step < progress.steps:
            return
        self._next_progress = now + next(pause for until, pause in _CADENCE if now - self._started < until)
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


def duration(seconds: float) -> str:
    """`duration(3725) == "1h02m"`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
