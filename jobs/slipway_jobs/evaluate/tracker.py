"""What a run knows about itself: suites, progress, scores. Pure but for its lock; the clock is injected.

The thread that works tells it what happens; the main thread takes the whole as a report.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from slipway_api.evaljob import EvalProgress, MeasuredModel, MetricValue, SuiteStatus
from slipway_api.run import Evaluation
from slipway_jobs.errors import JobError
from slipway_jobs.evaluate.worker import Which
from slipway_jobs.reporting import now_text

MAX_METRICS = 512  # what status can hold; the results hold all
_MAX_MESSAGE = 4096


class Tracker:
    """The state of an evaluation of `suites` on `models` models."""

    def __init__(self, suites: Sequence[str], models: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._models = models
        self._suites = {name: SuiteStatus(name=name, state="Pending") for name in suites}
        self._metrics: dict[str, list[MetricValue]] = {name: [] for name in suites}
        self._measured: dict[Which, MeasuredModel] = {}
        self._done = dict.fromkeys(suites, 0)  # over both models
        self._current = ""
        self._fresh = 0  # examples scored by this process since then
        self._since: float | None = None

    # --- told by the thread that works ----------------------------------------------------------------------------

    def measured(self, which: Which, model: MeasuredModel) -> None:
        """What a model is."""
        with self._lock:
            self._measured[which] = model

    def size(self, suite: str, examples: int) -> None:
        """How many examples a suite has."""
        self._change(suite, examples=examples)

    def begin(self, suite: str) -> None:
        """It is being scored."""
        with self._lock:
            self._current = suite
        self._change(suite, state="Running")

    def advance(self, suite: str, which: Which, count: int, *, fresh: bool = True) -> None:
        """So many examples more have scores; not `fresh`: they were there before this process."""
        with self._lock:
            self._done[suite] += count
            if fresh and self._since is None:
                self._since = self._clock()  # how long these took is not known: workers were still loading
            elif fresh:
                self._fresh += count
            status = self._suites[suite]
            if which == "model":
                self._suites[suite] = status.model_copy(update={"done": status.done + count})

    def cached(self, suite: str) -> None:
        """Every score of it was there."""
        self._change(suite, cached=True)

    def scores(self, suite: str, metrics: Sequence[MetricValue]) -> None:
        """What was computed of a suite; replaces what was known before."""
        with self._lock:
            self._metrics[suite] = list(metrics)

    def succeed(self, suite: str, warnings: Sequence[str]) -> None:
        """It has come to its end; `warnings` are what the user should know."""
        self._change(suite, state="Succeeded", message="; ".join(warnings)[:_MAX_MESSAGE] or None)

    def fail(self, suite: str, error: JobError) -> None:
        """It has failed; the others go on."""
        with self._lock:
            self._metrics[suite] = []
        self._change(suite, state="Failed", reason=error.reason, message=error.message)

    def _change(self, suite: str, **changes: object) -> None:
        with self._lock:
            self._suites[suite] = self._suites[suite].model_copy(update=changes)

    # --- asked by anybody -----------------------------------------------------------------------------------------

    def failed(self, suite: str) -> bool:
        """Whether a suite has failed."""
        with self._lock:
            return self._suites[suite].state == "Failed"

    @property
    def suites(self) -> list[SuiteStatus]:
        """How each suite stands, in the spec's order."""
        with self._lock:
            return list(self._suites.values())

    @property
    def metrics(self) -> list[MetricValue]:
        """Every score so far."""
        with self._lock:
            return [value for values in self._metrics.values() for value in values]

    def evaluation(self) -> Evaluation:
        """The whole state, as a report carries it."""
        metrics = self.metrics
        if len(metrics) > MAX_METRICS:  # scores of all examples before scores of slices
            metrics = [*(one for one in metrics if not one.slice), *(one for one in metrics if one.slice)][:MAX_METRICS]
        with self._lock:
            suites = list(self._suites.values())
            total = sum(status.examples for status in suites if status.state != "Failed") * self._models
            done = min(total, sum(self._done[status.name] for status in suites if status.state != "Failed"))
            rate = self._rate()
            progress = EvalProgress(
                done=done,
                total=total,
                summary=f"{done}/{total}",
                suite=self._current,
                examples_per_second=None if rate is None else f"{rate:.4g}",
                eta_seconds=None if not rate else round((total - done) / rate),
                updated_at=now_text(),
            )
            return Evaluation(
                progress=progress,
                suites=suites,
                metrics=metrics,
                model=self._measured.get("model"),
                baseline=self._measured.get("baseline"),
            )

    def _rate(self) -> float | None:
        if self._since is None or not self._fresh:
            return None
        elapsed = self._clock() - self._since
        return self._fresh / elapsed if elapsed > 0 else None
