"""The driver of a training run: the process that a RayJob starts, from the run contract to the exit code.

It reads the contract, keeps the log, prepares the data while Ray starts the workers, starts the workers again when one
is lost, passes on what rank 0 says, and ends with one word for programs and one sentence for people. It never trains,
and imports neither torch nor, before it has spoken its first line, ray.

Whatever happens, it ends through `_finish`: a last report that is sent until the operator has it, a last line in the
log, and an exit code that says the same coarsely.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError

from slipway_api.run import RUN_ENV, ExitCode, Outcome, RunEnd, RunSpec
from slipway_jobs.errors import InfrastructureError, JobError, OutOfMemory, Preempted, UserError
from slipway_jobs.reporting import HttpTransport, Reporter, RunState
from slipway_jobs.run_log import RunLog
from slipway_jobs.storage import Storage
from slipway_jobs.train import ray_settings
from slipway_jobs.train.console import Console
from slipway_jobs.train.failures import (
    PEER_LOST,
    RESTARTABLE,
    SMALLER,
    WORKER_LOST,
    OomKills,
    RestartBudget,
    job_error,
)
from slipway_jobs.train.lineage import completed_model

if TYPE_CHECKING:
    from slipway_jobs.train.mailbox import Mailbox

_POLL_SECONDS = 0.25
_STOP_MARGIN_SECONDS = 0.8  # of the time between SIGTERM and SIGKILL, for the last report
_STOP_REPORT_SECONDS = 0.5
_LEAVE_SECONDS = 5.0


@dataclass(frozen=True)
class Patience:
    """How long the driver waits for others, in seconds."""

    connect_seconds: float = 60.0  # until Ray answers, counted from the start of the process
    room_seconds: float = 300.0  # until the cluster is large enough for all workers
    end_report_seconds: float = 120.0  # until the operator has acknowledged the end
    stop_seconds: float = 2.2  # from SIGTERM to the end of training: Ray's job stop sends SIGKILL after 3 s

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Patience:
        """The defaults, or what SLIPWAY_{CONNECT,ROOM,END_REPORT}_SECONDS and Ray's RAY_JOB_STOP_WAIT_TIME_S say."""
        return cls(
            connect_seconds=float(environ.get("SLIPWAY_CONNECT_SECONDS", cls.connect_seconds)),
            room_seconds=float(environ.get("SLIPWAY_ROOM_SECONDS", cls.room_seconds)),
            end_report_seconds=float(environ.get("SLIPWAY_END_REPORT_SECONDS", cls.end_report_seconds)),
            stop_seconds=max(0.5, float(environ.get("RAY_JOB_STOP_WAIT_TIME_S", 3)) - _STOP_MARGIN_SECONDS),
        )


def main(environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Run the contract in SLIPWAY_RUN and leave with its exit code."""
    code = run(environ)
    sys.stdout.flush()
    sys.stderr.flush()
    # Neither a thread that hangs in native code nor an exit handler may keep the process or change its code.
    os._exit(code)


def run(environ: Mapping[str, str]) -> int:
    """Run the contract in SLIPWAY_RUN; the exit code."""
    started = process_start()
    try:
        spec = read_contract(environ)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return ExitCode.USER_ERROR
    transport = HttpTransport(spec.report, spec) if spec.report else None
    settings = Patience.of(environ)
    driver = Driver(spec, settings, started=started)
    reporter = Reporter(
        transport,
        interval_seconds=spec.report.interval_seconds if spec.report else 1.0,
        on_superseded=driver.superseded,
    )
    with contextlib.ExitStack() as stack:
        try:
            storage = Storage(spec.storage)
            stack.callback(RunLog(storage, spec.attempt).close)
        except (JobError, OSError) as error:
            failure = job_error(error)
            sys.stderr.write(f"error: {failure}\n")
            reporter.end(_end_of(failure), deadline_seconds=settings.end_report_seconds)
            return ExitCode.of(failure.outcome)
        try:
            return driver.run(storage, reporter)
        except Exception as error:
            traceback.print_exc()
            reporter.end(_end_of(job_error(error)), deadline_seconds=settings.end_report_seconds)
            return ExitCode.INFRASTRUCTURE


def read_contract(environ: Mapping[str, str]) -> RunSpec:
    """The RunSpec in SLIPWAY_RUN. Raises UserError naming the first field that is wrong."""
    text = environ.get(RUN_ENV, "")
    if not text:
        raise UserError("RunContractMissing", f"{RUN_ENV} is not set: the operator puts the run's JSON document there")
    try:
        return RunSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise UserError("RunContractInvalid", f"{RUN_ENV}: {where}: {first['msg']}") from None


def process_start() -> float:
    """When this process was created, Unix time, so that interpreter start-up counts too. Linux; else now."""
    try:
        with open("/proc/self/stat", "rb") as stat, open("/proc/uptime", "rb") as uptime:  # noqa: PTH123
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
            return time.time() - float(uptime.read().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()


def _end_of(error: JobError) -> RunEnd:
    return RunEnd(outcome=error.outcome, reason=error.reason, message=error.message)


class Driver:
    """One attempt. Three threads besides this one: `ray` starts and restarts the workers, `data` prepares the data, and
    the reporter talks to the operator; the main thread collects, prints, and takes signals.
    """

    def __init__(self, spec: RunSpec, patience: Patience, *, started: float) -> None:
        self.spec = spec
        self.started = started
        self._patience = patience
        self._console = Console(started)
        self._ended = threading.Event()
        self._end_lock = threading.Lock()
        self._end: RunEnd | None = None
        self._connected = threading.Event()
        self._mailbox: Mailbox | None = None
        self._descriptor: str | None = None  # of the prepared data
        self._stop: Preempted | None = None
        self._stop_time = 0.0
        self._stop_sent = False
        self._superseded = False
        self._earlier = RunState()  # what the workers before the last restart said
        self._state = self._earlier
        self._collecting = threading.Lock()
        self._timeline: dict[str, float] = {}

    # --- the main thread ------------------------------------------------------------------------------------------

    def run(self, storage: Storage, reporter: Reporter) -> int:
        """Run to the end; the exit code."""
        spec = self.spec
        self._storage, self._reporter = storage, reporter
        self._console.line(f"slipway run {spec.namespace}/{spec.name} attempt {spec.attempt}, storage {spec.storage}")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            model = completed_model(storage, uid=spec.uid)
        except JobError as error:
            return self._finish(_end_of(error))
        if model is not None:
            message = f"the model at {model.uri} was already complete: an earlier attempt made it"
            return self._finish(RunEnd(outcome=Outcome.SUCCEEDED, reason="ModelSaved", message=message, model=model))
        self._thread("ray", self._train)
        self._thread("data", self._prepare)
        while not self._ended.wait(_POLL_SECONDS):
            self._collect()
            if self._stop is not None and time.monotonic() > self._stop_time + self._patience.stop_seconds:
                self._conclude(_end_of(self._stop))
            if not self._connected.is_set() and time.time() > self.started + self._patience.connect_seconds:
                self._fail(
                    InfrastructureError("RayUnreachable", "the Ray cluster does not answer; is RAY_ADDRESS right?")
                )
        self._collect()
        assert self._end is not None
        return self._finish(self._end)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._request_stop(Preempted("Stopped", f"the run was told to stop ({signal.Signals(number).name})"))

    def superseded(self, message: str) -> None:
        """The operator no longer wants this attempt. Called by the reporter's thread."""
        self._superseded = True
        self._request_stop(Preempted("Superseded", f"the operator has given the job to another attempt: {message}"))

    def _request_stop(self, reason: Preempted) -> None:
        if self._stop is None:
            self._stop_time = time.monotonic()
            self._stop = reason

    def _conclude(self, end: RunEnd) -> None:
        """The first end is the run's."""
        with self._end_lock:
            if self._end is None:
                self._end = end
        self._ended.set()

    def _fail(self, error: BaseException) -> None:
        failure = job_error(error)
        if failure is not error:
            traceback.print_exception(error)
        self._conclude(_end_of(failure))

    def _thread(self, name: str, target: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:  # a thread must not die in silence
                self._fail(error)

        threading.Thread(target=guarded, name=name, daemon=True).start()

    def _finish(self, end: RunEnd) -> int:
        if self._connected.is_set() and self._stop is None:
            self._leave_ray()
        self._console.end(end)
        seconds = _STOP_REPORT_SECONDS if self._stop is not None else self._patience.end_report_seconds
        if not self._superseded and not self._reporter.end(end, deadline_seconds=seconds):
            self._console.line("the operator has not acknowledged the end of the run; the exit code says the same")
        return ExitCode.of(end.outcome)

    def _leave_ray(self) -> None:
        """End every process of this job before the report goes out: their memory and GPUs are for the next one."""
        from slipway_jobs.train import ray_adaptor  # noqa: PLC0415

        def leave() -> None:
            with contextlib.suppress(Exception):  # the run is over, whatever Ray thinks of it now
                if self._mailbox is not None:
                    self._mailbox.clear()
                ray_adaptor.disconnect()

        leaving = threading.Thread(target=leave, name="leave", daemon=True)
        leaving.start()
        leaving.join(timeout=_LEAVE_SECONDS)

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
        from slipway_jobs.train import ray_adaptor  # noqa: PLC0415 - imports ray.train
        from slipway_jobs.train.mailbox import Mailbox  # noqa: PLC0415

        spec = self.spec
        ray_adaptor.connect()
        self._mailbox = Mailbox(f"{spec.uid}/{spec.attempt}/{int(1000 * self.started)}")
        self._timeline["ray"] = time.time()
        self._connected.set()
        self._wait_for_room(ray_adaptor)
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

    def _wait_for_room(self, ray_adaptor: ModuleType) -> None:
        """Wait until the cluster is as large as the run needs. Raises InfrastructureError WorkersDoNotFit."""
        deadline = time.monotonic() + self._patience.room_seconds
        while lacking := ray_adaptor.missing_resources(self.spec):
            self._console.once(f"waiting for the cluster: {self.spec.workers.count} workers need {lacking}")
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    "WorkersDoNotFit",
                    f"workers: {self.spec.workers.count} workers need {lacking} in the Ray cluster; "
                    "use fewer or smaller workers, or add nodes",
                )
            time.sleep(1.0)
