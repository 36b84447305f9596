"""What the driver of every run has in common: the process that a RayJob starts, from the contract to the exit code.

It reads the contract, keeps the log, takes signals, talks to the operator, and ends with one word for programs and one
sentence for people. What the run does in between is its own: a subclass starts threads and keeps the state.

Whatever happens, it ends through `_finish`: a last report that is sent until the operator has it, a last line in the
log, and an exit code that says the same coarsely. It imports neither torch nor, before it has spoken its first line,
ray.
"""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Generic, NoReturn, TypeVar

from pydantic import ValidationError

from slipway_api.run import RUN_ENV, ExitCode, RunEnd, RunIdentity
from slipway_api.trainjob import Workers
from slipway_jobs.console import RunConsole
from slipway_jobs.errors import InfrastructureError, JobError, Preempted, UserError
from slipway_jobs.reporting import HttpTransport, Reporter
from slipway_jobs.run_log import RunLog
from slipway_jobs.storage import Storage
from slipway_jobs.train.failures import job_error

Contract = TypeVar("Contract", bound=RunIdentity)

_POLL_SECONDS = 0.25
_STOP_MARGIN_SECONDS = 0.8  # of the time between SIGTERM and SIGKILL, for the last report
_STOP_REPORT_SECONDS = 0.5
_LEAVE_SECONDS = 5.0


@dataclass(frozen=True)
class Patience:
    """How long the driver waits for others, in seconds."""

    connect_seconds: float = 60.0  # until Ray answers
    room_seconds: float = 300.0  # until the cluster is large enough for all workers
    end_report_seconds: float = 120.0  # until the operator has acknowledged the end
    stop_seconds: float = 2.2  # from SIGTERM to the end of the work: Ray's job stop sends SIGKILL after 3 s

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Patience:
        """The defaults, or what SLIPWAY_{CONNECT,ROOM,END_REPORT}_SECONDS and Ray's RAY_JOB_STOP_WAIT_TIME_S say."""
        return cls(
            connect_seconds=float(environ.get("SLIPWAY_CONNECT_SECONDS", cls.connect_seconds)),
            room_seconds=float(environ.get("SLIPWAY_ROOM_SECONDS", cls.room_seconds)),
            end_report_seconds=float(environ.get("SLIPWAY_END_REPORT_SECONDS", cls.end_report_seconds)),
            stop_seconds=max(0.5, float(environ.get("RAY_JOB_STOP_WAIT_TIME_S", 3)) - _STOP_MARGIN_SECONDS),
        )


def leave(code: int) -> NoReturn:
    """End the process with a run's exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Neither a thread that hangs in native code nor an exit handler may keep the process or change its code.
    os._exit(code)


def run_contract(
    environ: Mapping[str, str],
    contract: type[Contract],
    make_driver: Callable[[Contract, Patience, float], RunDriver[Contract]],
) -> int:
    """Run the contract in SLIPWAY_RUN; the exit code. `make_driver` gets the start of the process, Unix time."""
    started = process_start()
    try:
        spec = read_contract(environ, contract)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return ExitCode.USER_ERROR
    transport = HttpTransport(spec.report, spec) if spec.report else None
    settings = Patience.of(environ)
    driver = make_driver(spec, settings, started)
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
            reporter.end(end_of(failure), deadline_seconds=settings.end_report_seconds)
            return ExitCode.of(failure.outcome)
        try:
            return driver.run(storage, reporter)
        except Exception as error:
            traceback.print_exc()
            reporter.end(end_of(job_error(error)), deadline_seconds=settings.end_report_seconds)
            return ExitCode.INFRASTRUCTURE


def read_contract(environ: Mapping[str, str], contract: type[Contract]) -> Contract:
    """The contract in SLIPWAY_RUN. Raises UserError naming the first field that is wrong."""
    text = environ.get(RUN_ENV, "")
    if not text:
        raise UserError("RunContractMissing", f"{RUN_ENV} is not set: the operator puts the run's JSON document there")
    try:
        return contract.model_validate_json(text)
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


def end_of(error: JobError) -> RunEnd:
    """The last word of a run that an error ends."""
    return RunEnd(outcome=error.outcome, reason=error.reason, message=error.message)


class RunDriver(abc.ABC, Generic[Contract]):
    """One attempt. The main thread collects, prints and takes signals; the reporter talks to the operator from a thread
    of its own; what works is in threads that the subclass starts, and ends with `_conclude` or an exception.
    """

    def __init__(self, spec: Contract, patience: Patience, console: RunConsole, *, started: float) -> None:
        self.spec = spec
        self.started = started
        self._patience = patience
        self._log = console
        self._ended = threading.Event()
        self._end_lock = threading.Lock()
        self._end: RunEnd | None = None
        self._connected = threading.Event()  # to Ray
        self._connect_deadline: float | None = None  # Unix time; None: the run does not (yet) wait for Ray
        self._stop: Preempted | None = None
        self._stop_time = 0.0
        self._superseded = False

    # --- what a kind of run adds ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def _already_done(self) -> RunEnd | None:
        """The end of a run that has nothing left to do. May raise JobError."""

    @abc.abstractmethod
    def _begin(self) -> None:
        """Start the threads that work (`_thread`)."""

    @abc.abstractmethod
    def _collect(self) -> None:
        """Take over the newest state, report and print it. Called by the main thread several times a second."""

    def _before_leaving(self) -> None:
        """Clean up what the run keeps in Ray. What it raises is ignored."""

    # --- the main thread ------------------------------------------------------------------------------------------

    def run(self, storage: Storage, reporter: Reporter) -> int:
        """Run to the end; the exit code."""
        spec = self.spec
        self._storage, self._reporter = storage, reporter
        self._log.line(f"slipway run {spec.namespace}/{spec.name} attempt {spec.attempt}, storage {spec.storage}")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            end = self._already_done()
        except JobError as error:
            end = end_of(error)
        if end is not None:
            return self._finish(end)
        self._begin()
        while not self._ended.wait(_POLL_SECONDS):
            self._collect()
            if self._stop is not None and time.monotonic() > self._stop_time + self._patience.stop_seconds:
                self._conclude(end_of(self._stop))
            deadline = self._connect_deadline
            if deadline is not None and not self._connected.is_set() and time.time() > deadline:
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
        self._conclude(end_of(failure))

    def _thread(self, name: str, target: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:  # a thread must not die in silence
                self._fail(error)

        threading.Thread(target=guarded, name=name, daemon=True).start()

    def _wait_for_room(self, workers: Workers) -> None:
        """Wait until the cluster is as large as the run needs. Raises InfrastructureError WorkersDoNotFit."""
        from slipway_jobs import ray_cluster  # noqa: PLC0415

        deadline = time.monotonic() + self._patience.room_seconds
        while lacking := ray_cluster.missing_resources(workers):
            self._log.once(f"waiting for the cluster: {workers.count} workers need {lacking}")
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    "WorkersDoNotFit",
                    f"workers: {workers.count} workers need {lacking} in the Ray cluster; "
                    "use fewer or smaller workers, or add nodes",
                )
            time.sleep(1.0)

    def _finish(self, end: RunEnd) -> int:
        if self._connected.is_set() and self._stop is None:
            self._leave_ray()
        self._log.end(end)
        seconds = _STOP_REPORT_SECONDS if self._stop is not None else self._patience.end_report_seconds
        if not self._superseded and not self._reporter.end(end, deadline_seconds=seconds):
            self._log.line("the operator has not acknowledged the end of the run; the exit code says the same")
        return ExitCode.of(end.outcome)

    def _leave_ray(self) -> None:
        """End every process of this job before the report goes out: their memory and GPUs are for the next one."""
        from slipway_jobs import ray_cluster  # noqa: PLC0415

        def leave_cluster() -> None:
            with contextlib.suppress(Exception):  # the run is over, whatever Ray thinks of it now
                self._before_leaving()
                ray_cluster.disconnect()

        leaving = threading.Thread(target=leave_cluster, name="leave", daemon=True)
        leaving.start()
        leaving.join(timeout=_LEAVE_SECONDS)
