"""What an evaluation says to the people who read its log."""

from __future__ import annotations

from slipway_api.evaljob import SuiteStatus
from slipway_api.run import Evaluation, Outcome
from slipway_jobs.console import RunConsole, duration
from slipway_jobs.reporting import RunState


class Console(RunConsole):
    """The lines of an evaluation."""

    hints = {  # noqa: RUF012
        Outcome.USER_ERROR: "trying again cannot help: correct the manifest or what it points at",
        Outcome.OUT_OF_MEMORY: "the next attempt needs a smaller batchTokens",
        Outcome.INFRASTRUCTURE: "another attempt continues with the scores that are stored",
        Outcome.PREEMPTED: "another attempt continues with the scores that are stored",
    }
    _stage = ""
    _suites: dict[str, SuiteStatus] = {}  # noqa: RUF012 - replaced, never changed
    _shown_done = -1

    def show(self, state: RunState) -> None:
        """Print what is new in a state."""
        if state.stage != self._stage:
            self._stage = state.stage
            self.line(f"stage: {state.stage}")
        if state.evaluation is None:
            return
        before, self._suites = self._suites, {suite.name: suite for suite in state.evaluation.suites}
        self._show_progress(state.evaluation)
        for suite in state.evaluation.suites:
            known = before.get(suite.name)
            if known is None or suite.state != known.state:
                self._show_suite(suite, state.evaluation)

    def _show_suite(self, suite: SuiteStatus, evaluation: Evaluation) -> None:
        if suite.state == "Failed":
            self.line(f"suite {suite.name} failed ({suite.reason}): {suite.message}")
        if suite.state == "Succeeded":
            scores = [one for one in evaluation.metrics if one.suite == suite.name and not one.slice]
            told = ", ".join(f"{one.metric} {_short(one.value)}" for one in scores[:8])
            stored = " (stored before)" if suite.cached else ""
            self.line(f"suite {suite.name}: {suite.examples:,} examples{stored}; {told}")
            if suite.message:
                self.line(f"suite {suite.name}: warning: {suite.message}")

    def _show_progress(self, evaluation: Evaluation) -> None:
        progress = evaluation.progress
        if progress.done == self._shown_done or not progress.total or progress.examples_per_second is None:
            return
        if not self._due(last=progress.done >= progress.total):
            return
        self._shown_done = progress.done
        parts = [f"{progress.suite}: {progress.done:,}/{progress.total:,} examples"]
        parts.append(f"{float(progress.examples_per_second):,.4g}/s")
        if progress.eta_seconds is not None:
            parts.append(f"ETA {duration(progress.eta_seconds)}")
        self.line("  ".join(parts))


def _short(value: str) -> str:
    return f"{float(value):.5g}"
