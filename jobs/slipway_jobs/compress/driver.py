"""The driver of a compression run: the process that a RayJob starts.

The work is one process's: it runs here, in a thread, on the GPU that the RayJob's entrypoint was given, or on its CPUs.
So there are no workers and nothing connects to Ray; all the rest is as in every run (slipway_jobs.run_driver). Killed
anywhere, the next attempt makes the result again or finds it whole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import NoReturn

from slipway_api.run import CompressRunSpec, Outcome, RunEnd
from slipway_jobs.console import RunConsole
from slipway_jobs.reporting import RunState, Stage
from slipway_jobs.run_driver import Patience, RunDriver, leave, run_contract


class Console(RunConsole):
    """The lines of a compression run."""

    hints = {  # noqa: RUF012
        Outcome.USER_ERROR: "trying again cannot help: correct the manifest or what it points at",
        Outcome.OUT_OF_MEMORY: "give the run more memory, or calibrate on fewer or shorter samples",
        Outcome.INFRASTRUCTURE: "another attempt starts the compression again",
        Outcome.PREEMPTED: "another attempt starts the compression again",
    }


def main(environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Run the contract in SLIPWAY_RUN and leave with its exit code."""
    leave(run_contract(environ, CompressRunSpec, Driver))


class Driver(RunDriver[CompressRunSpec]):
    """One attempt, with one thread besides those of every run: `compress`."""

    def __init__(self, spec: CompressRunSpec, patience: Patience, started: float) -> None:
        super().__init__(spec, patience, Console(started), started=started)
        self._state = RunState()
        self._changing = threading.Lock()

    def _already_done(self) -> RunEnd | None:
        return None  # a result that is there is found, verified and said again by the step itself

    def _begin(self) -> None:
        self._thread("compress", self._compress)

    def _collect(self) -> None:
        with self._changing:
            self._reporter.update(self._state)

    def _enter(self, stage: Stage) -> None:
        self._log.line(f"stage: {stage}")
        with self._changing:
            self._state = self._state.model_copy(update={"stage": stage})

    def _compress(self) -> None:
        from slipway_jobs.compress.step import compress  # noqa: PLC0415 - imports torch

        result = compress(self.spec, progress=self._log.line, stage=self._enter)
        with self._changing:
            self._state = self._state.model_copy(update={"compression": result})
        message = f"{'found' if result.cached else 'made'} {result.uri} ({result.scheme}, {result.execution})"
        self._conclude(RunEnd(outcome=Outcome.SUCCEEDED, reason="ModelCompressed", message=message, compression=result))
