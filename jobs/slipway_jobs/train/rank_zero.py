"""What rank 0 does besides training: it keeps what it knows about the run, and tells it from a thread of its own.

The engine calls it between steps, so every method returns in microseconds: it keeps references, and the thread makes
the document, at most once a second and at once when a stage, the plan or a checkpoint is new. The other way round it
fetches the driver's wish to stop, which the engine asks for at each step boundary.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from slipway_api.trainjob import CheckpointStatus, PlanStatus, Progress, SkippedCheckpoint, TrainedModel
from slipway_jobs.metrics_history import MetricsHistory
from slipway_jobs.reporting import RunState, now_text
from slipway_jobs.storage import Storage

if TYPE_CHECKING:
    from slipway_jobs.train.engine import StepMetrics

_TELL_SECONDS = 1.0
_LISTEN_SECONDS = 0.25


class RankZero:
    """The engine's listener on rank 0.

    `tell(text)` takes the newest state as JSON; `asked_to_stop()` says why the run should stop, None while it should
    not. Both are called from a thread and may raise: what cannot be told now is told a second later.
    """

    def __init__(
        self,
        storage: Storage,
        attempt: int,
        *,
        tell: Callable[[str], None],
        asked_to_stop: Callable[[], str | None],
        timeline: dict[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._attempt = attempt
        self._tell = tell
        self._asked_to_stop = asked_to_stop
        self._clock = clock
        self._changed = threading.Condition()
        self._state = RunState(stage="Starting", timeline=timeline)
        self._last: StepMetrics | None = None
        self._eval_loss: float | None = None
        self.steps = 0  # of the whole training; the engine knows, once it is made
        self._version, self._told_version = 1, 0
        self._urgent = True
        self._closing = False
        self._failure = ""
        self._stop_message: str | None = None
        self._metrics: MetricsHistory | None = None
        self._thread = threading.Thread(target=self._run, name="rank-zero", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell the last state and wait until it is told."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=10)
        if self._metrics is not None:
            self._metrics.close()

    # --- slipway_jobs.train.engine.EngineListener -------------------------------------------------------------------

    @property
    def stop_message(self) -> str | None:
        """Why the run should stop at the next step boundary."""
        return self._stop_message

    def on_stage(self, stage: str) -> None:
        """Starting, Training or SavingModel."""
        self._update(stage=stage)

    def on_plan(self, plan: PlanStatus) -> None:
        """The model is wrapped."""
        self._mark("model")
        self._update(plan=plan)

    def on_resume(self, step: int, skipped: list[SkippedCheckpoint]) -> None:
        """Training begins after `step`."""
        self._metrics = MetricsHistory(
            self._storage, self._attempt, steps=self.steps, resumed_from_step=step or None, now=now_text
        )
        self._update(resumed_from_step=step or None, skipped_checkpoints=skipped[:20])

    def on_step(self, metrics: StepMetrics) -> None:
        """Hot: keeps a reference, writes one line."""
        if self._last is None:
            self._mark("first step")
        self._last = metrics
        self._version += 1  # no lock: only the engine's thread changes it, and a late reader is a second late
        if self._metrics is not None:
            self._metrics.step(
                metrics.step,
                loss=metrics.loss,
                gradNorm=metrics.gradient_norm,
                learningRate=metrics.learning_rate,
                tokens=metrics.tokens,
                seconds=metrics.seconds,
                tokensPerSecond=metrics.tokens / metrics.seconds if metrics.seconds > 0 else None,
            )

    def on_eval(self, step: int, loss: float, tokens: int) -> None:
        """Tell it now: the next step may be long, and after the last one there is none."""
        if self._metrics is not None:
            self._metrics.evaluation(step, loss=loss, tokens=tokens)
        self._eval_loss = loss
        self._update()

    def on_checkpoint(self, checkpoint: CheckpointStatus) -> None:
        """A checkpoint is committed."""
        time_text = checkpoint.time or now_text()
        self._update(checkpoint=checkpoint.model_copy(update={"time": time_text}))

    def on_warning(self, reason: str, message: str) -> None:
        """For the log."""
        sys.stderr.write(f"warning: {reason}: {message}\n")

    def on_model(self, model: TrainedModel) -> None:
        """The model directory is complete."""
        self._update(model=model)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _mark(self, phase: str) -> None:
        self._update(timeline={**self._state.timeline, phase: time.time()})

    def _progress(self) -> Progress | None:
        last, measured = self._last, self._eval_loss
        if last is None:
            return None if measured is None else Progress(step=0, steps=self.steps, eval_loss=f"{measured:.4f}")
        progress = last.progress()
        newest = progress.eval_loss if measured is None else f"{measured:.4f}"
        return progress.model_copy(update={"eval_loss": newest, "updated_at": now_text()})

    def _update(self, **changes: object) -> None:
        with self._changed:
            self._state = self._state.model_copy(update=changes)
            self._version += 1
            self._urgent = True
            self._changed.notify_all()

    def _run(self) -> None:
        last_told = last_heard = float("-inf")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._urgent, timeout=_LISTEN_SECONDS)
                now = self._clock()
                due = self._urgent or self._closing or now - last_told >= _TELL_SECONDS
                due = due and self._version != self._told_version
                closing, version, state = self._closing, self._version, self._state
                self._urgent = False
            if due:
                text = state.model_copy(update={"progress": self._progress()}).model_dump_json()
                if self._safely(partial(self._tell, text)):
                    self._told_version = version
                last_told = now
            if closing:
                return
            if now - last_heard >= _LISTEN_SECONDS and self._stop_message is None:
                self._safely(self._listen)
                last_heard = now

    def _listen(self) -> None:
        self._stop_message = self._asked_to_stop()

    def _safely(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # Ray's store may be away for a while; training goes on
            if str(error) != self._failure:
                self._failure = str(error)
                sys.stderr.write(f"warning: rank 0 cannot reach the driver: {error}\n")
            return False
        return True
