"""Tells the operator how the run goes: one thread, one growing state, plain HTTP.

The state is cumulative, so a report that is lost costs nothing and only the newest matters. Progress goes out at most
every `interval_seconds`; a new stage, plan or checkpoint at once. Only the end must arrive: `end` waits for the
acknowledgement, and the driver's exit code says the same coarsely when it does not come.

Reporting never blocks the training, never fails it, and never logs the token. It reads the token anew for every
request, because a mounted Secret may be replaced while the run goes on. It uses http.client and nothing else: the
driver pays for every import before its first step.
"""

from __future__ import annotations

import datetime
import http.client
import json
import math
import random
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlsplit

from pydantic import Field

from slipway_api.base import ApiModel
from slipway_api.compression import CompressionResult
from slipway_api.run import REPORT_PATH, Evaluation, Report, ReportTarget, RunEnd, RunIdentity
from slipway_api.trainjob import CheckpointStatus, PlanStatus, Progress, SkippedCheckpoint, TrainedModel

Stage = Literal[
    "Starting",
    "PreparingData",
    "Training",
    "SavingModel",
    "Evaluating",
    "SavingResults",
    "Compressing",
    "Measuring",
    "Ended",
]

_SUPERSEDED = (409, 410)
_REFUSED = (400, 401, 403, 404, 405, 413)
_REQUEST_SECONDS = 20.0  # the operator holds an end for up to 15 s, until it is durable
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_URGENT_GAP = 0.2  # seconds between two urgent reports: a run may save a checkpoint at every step


class RunState(ApiModel):
    """What a run knows about itself, without the envelope of a report. Travels from rank 0 to the driver as JSON."""

    stage: Stage = "Starting"
    plan: PlanStatus | None = None
    progress: Progress | None = None
    checkpoint: CheckpointStatus | None = None
    skipped_checkpoints: list[SkippedCheckpoint] = Field(default_factory=list)
    resumed_from_step: int | None = None
    evaluation: Evaluation | None = None
    compression: CompressionResult | None = None
    model: TrainedModel | None = Field(default=None, description="Set once the model directory is complete.")
    timeline: dict[str, float] = Field(default_factory=dict, description="Start-up phase -> when it ended, Unix time.")

    def after(self, earlier: RunState) -> RunState:
        """This state, with what it does not know yet taken from an earlier one (the workers before a restart)."""
        known = {name: value for name, value in earlier if value is not None and getattr(self, name) is None}
        skipped = self.skipped_checkpoints + [
            one for one in earlier.skipped_checkpoints if one not in self.skipped_checkpoints
        ]
        return self.model_copy(update={**known, "skipped_checkpoints": skipped[:20]})


@dataclass(frozen=True)
class Answer:
    """What the operator said: the HTTP status, 0 when nothing came back, and a word of explanation."""

    status: int
    message: str = ""

    @property
    def accepted(self) -> bool:
        """The report is known."""
        return 200 <= self.status < 300

    @property
    def superseded(self) -> bool:
        """Another attempt owns the job: this one must stop."""
        return self.status in _SUPERSEDED

    @property
    def final(self) -> bool:
        """Sending it again cannot help."""
        return self.accepted or self.superseded or self.status in _REFUSED


class Transport(Protocol):
    """Delivers one report."""

    def post(self, body: bytes) -> Answer:
        """One try. Never raises."""
        ...


class HttpTransport:
    """POST {url}/v1/runs/{kind}/{namespace}/{name}/{uid}/{attempt} with the run's token, over one kept connection."""

    def __init__(self, target: ReportTarget, run: RunIdentity) -> None:
        self._token_file = Path(target.token_file)
        parts = urlsplit(target.url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port
        self._ca_file = target.ca_file
        who = (run.kind, run.namespace, run.name, run.uid, str(run.attempt))
        self._path = parts.path.rstrip("/") + REPORT_PATH + "/" + "/".join(quote(part, safe="") for part in who)
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes) -> Answer:
        """One try. Never raises; what it says about a failure never holds the token."""
        try:
            token = self._token_file.read_text().strip()
        except OSError as error:
            return Answer(0, f"cannot read the report token: {error}")
        if not token.isascii() or not token.isprintable():  # http.client would quote it in its complaint
            return Answer(0, f"{self._token_file} does not hold a token")
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.request("POST", self._path, body, headers)
            response = self._connection.getresponse()
            text = response.read(4096).decode("utf-8", "replace").replace(token, "***")
            if response.will_close or not response.isclosed():
                self._disconnect()
            return Answer(response.status, _message(text))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._disconnect()
            return Answer(0, f"{type(error).__name__}: {error}".replace(token, "***"))

    def _connect(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=_REQUEST_SECONDS)
        context = ssl.create_default_context(cafile=self._ca_file)
        return http.client.HTTPSConnection(self._host, self._port, timeout=_REQUEST_SECONDS, context=context)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return text[:300]


def now_text() -> str:
    """The time as the API writes it: RFC 3339, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _events(state: RunState) -> tuple[object, ...]:
    """What is worth a report of its own, beside the cadence."""
    suites = [(suite.name, suite.state) for suite in state.evaluation.suites] if state.evaluation else []
    return state.stage, state.plan, state.checkpoint, suites


class Reporter:
    """Sends the newest state from a thread of its own. `on_superseded(message)` is called once, from that thread.

    `transport=None`: the run reports to nobody, and every method does nothing but keep the state.
    """

    def __init__(
        self,
        transport: Transport | None,
        *,
        interval_seconds: float = 2.0,
        on_superseded: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._transport = transport
        self._interval = interval_seconds
        self._on_superseded = on_superseded
        self._clock = clock
        self._jitter = jitter
        self._changed = threading.Condition()
        self._state = RunState()
        self._version = 0  # of the state; a version that has been sent needs no second report
        self._urgent = True
        self._closing = False
        self._superseded = False
        self._last_failure = ""
        # Wall-clock milliseconds: a driver that is started again for the same attempt must not fall behind its past.
        self._sequence = time.time_ns() // 1_000_000
        self._thread: threading.Thread | None = None
        if transport is not None:
            self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
            self._thread.start()

    @property
    def state(self) -> RunState:
        """The newest state."""
        return self._state

    def update(self, state: RunState) -> None:
        """Replace the state. Returns at once."""
        with self._changed:
            before, self._state = self._state, state
            if state == before:
                return
            self._version += 1
            self._urgent |= _events(state) != _events(before)
            self._changed.notify_all()

    def end(self, end: RunEnd, *, deadline_seconds: float = 120.0) -> bool:
        """Send the last report until it is acknowledged; False when it was refused or the deadline passed.

        Progress stops here. Blocks for at most `deadline_seconds` and one request.
        """
        deadline = self._clock() + deadline_seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._transport is None or self._thread is None:
            return True
        self._thread.join(timeout=max(0.0, deadline - self._clock()))
        if self._superseded or self._thread.is_alive():
            return False
        with self._changed:
            self._state = self._state.model_copy(update={"stage": "Ended"})
        pause = _FIRST_PAUSE
        while True:
            answer = self._transport.post(self._body(end))
            if answer.final:
                if not answer.accepted:
                    self._complain(f"the end of the run was refused: {answer.status} {answer.message}")
                return answer.accepted
            self._complain(f"the operator does not answer: {answer.status or ''} {answer.message}")
            left = deadline - self._clock()
            if left <= 0:
                return False
            time.sleep(min(left, pause * (0.5 + self._jitter())))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _body(self, end: RunEnd | None = None) -> bytes:
        self._sequence += 1
        fields: dict[str, Any] = {name: value for name, value in self._state if name not in ("model", "timeline")}
        report = Report(sequence=self._sequence, time=now_text(), end=end, **fields)
        return json.dumps(report.to_wire(), separators=(",", ":")).encode()

    def _run(self) -> None:
        assert self._transport is not None
        sent_version, last_time, pause = -1, -math.inf, _FIRST_PAUSE
        while True:
            with self._changed:
                while not self._closing and (left := self._due_in(sent_version, last_time)) > 0:
                    self._changed.wait(timeout=None if left == math.inf else left)
                if self._closing:
                    return
                version, self._urgent = self._version, False
                body = self._body()
            answer = self._transport.post(body)
            if answer.accepted:
                sent_version, last_time, pause = version, self._clock(), _FIRST_PAUSE
                self._last_failure = ""
            elif answer.final:
                self._silence(answer)
                return
            else:
                self._complain(f"the operator does not answer: {answer.status or ''} {answer.message}")
                # The clock alone decides when to try again: an urgent change must not turn an outage into a storm.
                self._wait_until(self._clock() + max(self._interval, pause * (0.5 + self._jitter())))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _due_in(self, sent_version: int, last_time: float) -> float:
        """Seconds until the next report, infinite while there is nothing new."""
        if self._version == sent_version:
            return math.inf
        return last_time + (_URGENT_GAP if self._urgent else self._interval) - self._clock()

    def _wait_until(self, when: float) -> None:
        with self._changed:
            while not self._closing and (left := when - self._clock()) > 0:
                self._changed.wait(timeout=left)

    def _silence(self, answer: Answer) -> None:
        self._complain(f"the operator refuses the reports of this run ({answer.status}): {answer.message}")
        self._superseded = answer.superseded
        if answer.superseded and self._on_superseded is not None:
            self._on_superseded(answer.message)

    def _complain(self, what: str) -> None:
        """Once per kind of trouble: a long outage must not fill the log."""
        if what != self._last_failure:
            self._last_failure = what
            sys.stderr.write(f"warning: reporting: {what}\n")
