"""The driver of an evaluation: the process that a RayJob starts.

It finds out which scores are stored already, has workers make the others, computes the metrics, writes the results and
ends as every run does (slipway_jobs.run_driver). It scores nothing itself and imports no torch (but for benchmarks,
whose harness does). A run whose scores are all there starts no worker and never looks for Ray.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import NoReturn

from slipway_api.run import EvalRunSpec, RunEnd
from slipway_jobs.evaluate.console import Console
from slipway_jobs.evaluate.evaluation import Evaluation
from slipway_jobs.evaluate.tracker import Tracker
from slipway_jobs.reporting import RunState, Stage
from slipway_jobs.run_driver import Patience, RunDriver, leave, run_contract


def main(environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Run the contract in SLIPWAY_RUN and leave with its exit code."""
    leave(run_contract(environ, EvalRunSpec, lambda spec, patience, started: Driver(spec, patience, started=started)))


class Driver(RunDriver[EvalRunSpec]):
    """One attempt. One thread besides those of every run: `evaluate` does all of the work."""

    def __init__(self, spec: EvalRunSpec, patience: Patience, *, started: float) -> None:
        self._console = Console(started)
        super().__init__(spec, patience, self._console, started=started)
        self._tracker = Tracker([suite.name for suite in spec.suites], 1 if spec.baseline is None else 2)
        self._stage: Stage = "Starting"
        self._collecting = threading.Lock()

    def _already_done(self) -> RunEnd | None:
        return None  # stored scores make a second run cheap, and its results are the same

    def _begin(self) -> None:
        self._thread("evaluate", self._evaluate)

    def _evaluate(self) -> None:
        # A progress bar is for a terminal; in a log it is one endless line.
        os.environ.update(TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
        self._conclude(Evaluation(self.spec, self._storage, self._tracker, self).run())

    def _collect(self) -> None:
        with self._collecting:
            state = RunState(stage=self._stage, evaluation=self._tracker.evaluation())
            self._reporter.update(state)
            self._console.show(state)

    # --- what the evaluation asks of its driver -------------------------------------------------------------------

    def stage(self, stage: Stage) -> None:
        """The run has come to that stage."""
        self._stage = stage

    def say(self, text: str) -> None:
        """A line for the log."""
        self._console.line(text)

    def connect(self) -> None:
        """Join the Ray cluster and wait for room. Raises InfrastructureError RayUnreachable, WorkersDoNotFit."""
        import time  # noqa: PLC0415

        from slipway_jobs.train import ray_settings  # noqa: PLC0415

        self._connect_deadline = time.time() + self._patience.connect_seconds
        ray_settings.apply(os.environ)
        from slipway_jobs import ray_cluster  # noqa: PLC0415

        ray_cluster.connect()
        self._connected.set()
        self._wait_for_room(self.spec.workers)
