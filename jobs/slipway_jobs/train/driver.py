"""The driver of a training run: the process that a RayJob starts.

It prepares the data while Ray starts the workers, starts the workers again when one is lost, passes on what rank 0
says, and ends as every run does (slipway_jobs.run_driver). It never trains, and imports neither torch nor, before it
has spoken its first line, ray.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from slipway_api.run import Outcome, RunEnd, RunSpec
from slipway_jobs.errors import InfrastructureError, JobError, OutOfMemory
from slipway_jobs.reporting import RunState
from slipway_jobs.run_driver import Patience, RunDriver, leave, run_contract
from slipway_jobs.storage import Storage
from slipway_jobs.train import ray_settings
from slipway_jobs.train.console import Console
from slipway_jobs.train.failures import PEER_LOST, RESTARTABLE, SMALLER, WORKER_LOST, OomKills, RestartBudget
from slipway_jobs.train.lineage import completed_model

if TYPE_CHECKING:
    from slipway_jobs.train.mailbox import Mailbox


def main(environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Run the contract in SLIPWAY_RUN and leave with its exit code."""
    leave(run_contract(environ, RunSpec, lambda spec, patience, started: Driver(spec, patience, started=started)))


class Driver(RunDriver[RunSpec]):
    """One attempt. Two threads besides those of every run: `ray` starts and restarts the workers, `data` prepares the
    data.
    """

    def __init__(self, spec: RunSpec, patience: Patience, *, started: float) -> None:
        self._console = Console(started)
        super().__init__(spec, patience, self._console, started=started)
        self._mailbox: Mailbox | None = None
        self._descriptor: str | None = None  # of the prepared data
        self._stop_sent = False
        self._earlier = RunState()  # what the workers before the last restart said
        self._state = self._earlier
        self._collecting = threading.Lock()
        self._timeline: dict[str, float] = {}

    def _already_done(self) -> RunEnd | None:
        model = completed_model(self._storage, uid=self.spec.uid)
        if model is None:
            return None
        message = f"the model at {model.uri} was already complete: an earlier attempt made it"
        return RunEnd(outcome=Outcome.SUCCEEDED, reason="ModelSaved", message=message, model=model)

    def _begin(self) -> None:
        self._connect_deadline = self.started + self._patience.connect_seconds
        self._thread("ray", self._train)
        self._thread("data", self._prepare)

    def _before_leaving(self) -> None:
        if self._mailbox is not None:
            self._mailbox.clear()

    # --- what rank 0 says -----------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Take over the newest state. Called by the main thread and, when workers have ended, by the ray thread."""
        with self._collecting:
            self._collect_locked()

    def _collect_locked(self) -> None:
        state = self._earlier
        if self._mailbox is not None:
            try:
                if self._stop is not None and not self._stop_sent:
                    self._mailbox.put("stop", self._stop.message)
                    self._stop_sent = True
                text = self._mailbox.get("state")
            except Exception as error:  # the GCS is away: the next round finds it back, or the ray thread fails
                self._console.once(f"cannot read what the workers say: {error}")
                return
            if text:
                state = RunState.model_validate_json(text).after(self._earlier)
        if state.stage == "Starting" and self._descriptor is None:
            state = state.model_copy(update={"stage": "PreparingData"})
        self._state = state.model_copy(update={"timeline": {**self._timeline, **state.timeline}})
        self._reporter.update(self._state)
        self._console.show(self._state)

    # --- the data thread ------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        from slipway_jobs.data import prepare  # noqa: PLC0415 - imports numpy and tokenizers

        spec = self.spec
        cache = Storage(spec.cache, field="cache")
        prepared = prepare(spec.data, spec.tokenizer, spec.model, cache, progress=self._console.line)
        self._timeline["data"] = time.time()
        self._descriptor = prepared.descriptor_uri
        self._connected.wait()
        assert self._mailbox is not None
        self._mailbox.put("prepared", prepared.descriptor_uri)

    # --- the ray thread -------------------------------------------------------------------------------------------

    def _train(self) -> None:
        ray_settings.apply(os.environ)
        from slipway_jobs import ray_cluster  # noqa: PLC0415
        from slipway_jobs.train import ray_adaptor  # noqa: PLC0415 - imports ray.train
        from slipway_jobs.train.mailbox import Mailbox  # noqa: PLC0415

        spec = self.spec
        ray_cluster.connect()
        self._mailbox = Mailbox(f"{spec.uid}/{spec.attempt}/{int(1000 * self.started)}")
        self._timeline["ray"] = time.time()
        self._connected.set()
        self._wait_for_room(spec.workers)
        budget, kills = RestartBudget(), OomKills()
        while True:
            try:
                ray_adaptor.fit(spec, self._mailbox.name)
                break
            except JobError as error:
                self._collect()
                self._restart_after(error, budget, kills)
        self._collect()
        model = self._state.model or completed_model(self._storage, uid=spec.uid)
        if model is None:
            raise InfrastructureError("ModelMissing", "the workers ended well, but rank 0 has not said what it saved")
        self._conclude(
            RunEnd(outcome=Outcome.SUCCEEDED, reason="ModelSaved", message=f"saved {model.uri}", model=model)
        )

    def _restart_after(self, error: JobError, budget: RestartBudget, kills: OomKills) -> None:
        """Get ready to start the workers again, or raise what ends the run."""
        if error.reason in (WORKER_LOST, PEER_LOST) and kills.any_since():
            raise OutOfMemory("OutOfMemory", f"{error.message}: the kernel killed it because memory ran out; {SMALLER}")
        if self._stop is not None:
            raise self._stop
        if error.reason not in RESTARTABLE:
            raise error
        checkpoint = self._state.checkpoint
        if not budget.spend(checkpoint.step if checkpoint else None):
            raise InfrastructureError(
                "NoProgress",
                f"the workers failed {budget.limit + 1} times without a new checkpoint; last: {error.message}",
            )
        where = f"the checkpoint of step {checkpoint.step}" if checkpoint else "the start"
        self._console.line(f"{error.message}; starting the workers again from {where}")
        assert self._mailbox is not None
        with self._collecting:
            self._mailbox.put("state", "")
            self._earlier = self._state.model_copy(update={"stage": "Starting"})
        time.sleep(min(8.0, 0.5 * 2**budget.used))
