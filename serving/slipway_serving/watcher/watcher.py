"""The watcher: takes batches from routers, and works them off in a thread of its own.

    take -> queue -> features -> judges -> window? -> alarms, snapshot, state saved, report page

`take` only queues. The queue is bounded; what finds it full is counted as dropped. A window that ends is followed by
one commit of the whole state (store.py), so a watcher that is killed goes on where the last commit was, and the ids of
alarms follow from what they are about: said twice, they are the same. Storage that is away stops nothing: windows are
judged and told, and what could not be written is written with the next commit.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from slipway_api.drift import DriftAlarm, DriftStatus, Snapshot
from slipway_api.serving import WatcherConfig
from slipway_jobs.drift.detector import Alarm
from slipway_jobs.drift.errors import DriftError
from slipway_jobs.drift.features import answer_features
from slipway_jobs.drift.window_table import to_parquet
from slipway_jobs.errors import JobError, UserError
from slipway_serving.watcher.examples import WINDOWS_KEPT, WINDOWS_OF_AN_ALARM, Examples, Seen, write_snapshot
from slipway_serving.watcher.history import History
from slipway_serving.watcher.judges import Judge, Judged, LearningJudge
from slipway_serving.watcher.page import render
from slipway_serving.watcher.records import Prompts, error_of, features_of_feedback
from slipway_serving.watcher.redaction import redacted
from slipway_serving.watcher.reference import Reference, open_reference
from slipway_serving.watcher.store import Store

log = logging.getLogger("slipway.watcher")
REPORT = "report.html"
_QUEUE = 10_000  # records
_STATE_VERSION = 1
_SAVE_SECONDS = 20.0  # between windows, while there is something new
_RETRY_SECONDS = 20.0
_MOST_ALARMS = 20


class Watcher:
    """One version's traffic."""

    def __init__(
        self,
        config: WatcherConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Contacts nothing: `prepare` does, in the thread."""
        self.config, self._clock, self._wall = config, clock, wall
        self._queue: deque[dict[str, Any]] = deque()
        self._arrived = threading.Event()
        self._router_dropped: dict[str, int] = {}
        self._dropped_before = 0  # by routers that a watcher before this one knew
        self._dropped = 0  # here
        self._requests = 0
        self._problem: str | None = "the watcher reads the reference"
        self._seen = Seen()
        self._store = Store(config.storage, config.version)
        self._examples = Examples(config.max_examples) if config.content == "examples" else None
        self._history = History()
        self._alarms: list[DriftAlarm] = []
        self._snapshot: Snapshot | None = None
        self._snapshot_due = 0  # windows that the next one takes; 0: none is due
        self._unwritten: deque[tuple[str, bytes]] = deque(maxlen=64)
        self._saved_at = clock()
        self._dirty = False
        self._reference: Reference | None = None
        self._prompts: Prompts | None = None
        self._requests_judge: Judge | None = None
        size = config.window_requests
        self._answers = LearningJudge("answers", size, clock, wall)
        self._feedback = LearningJudge("feedback", max(50, size // 4), clock, wall)

    # --- called from anywhere -----------------------------------------------------------------------------------------

    def take(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Queue what a router sends; what its /metrics should say."""
        self._router_dropped[str(batch["replica"])] = int(batch["dropped"])
        for record in batch["records"]:
            if len(self._queue) >= _QUEUE:
                self._dropped += 1
            else:
                self._queue.append(record)
        self._arrived.set()
        return {
            "windows": self._history.windows,
            "alarms": self._history.alarms,
            "dropped": self._dropped,
            "signals": self._history.newest(),
        }

    def status(self) -> DriftStatus:
        """For the operator."""
        judge = self._requests_judge
        return DriftStatus(
            profile=judge.detector.profile.digest if judge is not None else "",
            version=self.config.version,
            windows=self._history.windows,
            requests=self._requests,
            dropped=self._dropped + self._dropped_before + sum(self._router_dropped.values()),
            active=self._history.active()[:64],
            alarms=list(self._alarms),
            snapshot=self._snapshot,
            report=self._store.uri_of(REPORT) if self._history.windows else None,
            time=_text(self._history.time) if self._history.time else None,
            problem=self._problem,
        )

    # --- the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """For ever."""
        while not self.prepare():
            time.sleep(_RETRY_SECONDS)
        while True:
            self._arrived.wait(1.0)
            self._arrived.clear()
            try:
                self.step()
            except Exception:  # a record that cannot be read must not end the watching of all others
                log.exception("a batch was dropped")

    def prepare(self) -> bool:
        """Get the reference and the state of the watcher before; whether that is done. Else status says the problem."""
        try:
            reference = open_reference(self.config)
            judge = Judge("requests", reference.profile, self.config.window_requests, self._clock, self._wall)
            state = self._store.load()
        except (DriftError, UserError) as error:
            self._problem = str(error)
        except (JobError, OSError) as error:
            self._problem = f"{error}; it is tried again"
        except Exception as error:
            log.exception("no reference")
            self._problem = f"no reference can be made: {type(error).__name__}: {error}"
        else:
            self._reference = reference
            self._prompts = Prompts(reference.backend, reference.directory)
            self._requests_judge = judge
            self._restore(state)
            self._problem = None
            return True
        return False

    def step(self) -> None:
        """Work off what is queued, close windows that were open for too long, save what is due."""
        while self._queue:
            records = [self._queue.popleft() for _ in range(min(200, len(self._queue)))]
            fresh = [record for record in records if self._seen.first(record["key"])]
            for heard, run in itertools.groupby(fresh, lambda record: "feedback" in record):  # in the order they came
                if not heard:
                    self._requests_of(list(run))
                    continue
                for record in run:
                    self._feedback_of(record["key"], record["feedback"])
        assert self._requests_judge is not None
        for judge in (self._requests_judge, self._answers, self._feedback):
            self._judged(judge.name, judge.tick())
        if self._dirty and self._clock() - self._saved_at >= _SAVE_SECONDS:
            self._save()

    def _requests_of(self, records: list[dict[str, Any]]) -> None:
        assert self._reference is not None
        assert self._prompts is not None
        assert self._requests_judge is not None
        ours = [record for record in records if record["version"] == self.config.version]
        prompts = self._prompts
        features = self._reference.reader.features(
            [prompts.compared(record) for record in ours], [record.get("loss") for record in ours]
        )
        for record, request in zip(ours, features, strict=True):
            self._requests += 1
            self._dirty = True
            if self._examples is not None:
                text = prompts.learnt(record)
                self._examples.add(record["id"], redacted(text) if self.config.redact else text)
            answer = answer_features(record["text"], record["tokens"], record["finish"], record.get("entropy"))
            self._judged("answers", self._answers.add(record["key"], answer))
            self._judged("requests", self._requests_judge.add(record["key"], request))

    def _feedback_of(self, key: str, entry: Mapping[str, Any]) -> None:
        if entry.get("version") != self.config.version:
            return
        self._dirty = True
        corrected = entry.get("corrected")
        if corrected and self._examples is not None:
            self._examples.correct(entry["request_id"], redacted(corrected) if self.config.redact else corrected)
        error = error_of(entry)
        if error is not None:
            self._feedback.observe_error(error)
        self._judged("feedback", self._feedback.add(key, features_of_feedback(entry)))

    # --- a window has ended -------------------------------------------------------------------------------------------

    def _judged(self, judge: str, judged: Judged | None) -> None:
        if judged is None:
            return
        window, verdict = judged.window, judged.verdict
        self._history.add(judge, verdict, window.start, window.end)
        known = {alarm.id for alarm in self._alarms}
        new = [_alarm(alarm) for alarm in verdict.alarms if alarm.id not in known]
        self._unwritten.append((f"windows/{judge}-{window.index:08d}.parquet", to_parquet([window])))
        if new:
            self._snapshot_due = WINDOWS_OF_AN_ALARM
        elif judge == "requests" and (window.index + 1) % WINDOWS_KEPT == 0:
            self._snapshot_due = self._snapshot_due or WINDOWS_KEPT
        if self._snapshot_due:
            self._take_snapshot()
        # After its snapshot: another thread reads `status`, and who acts on an alarm looks for examples.
        self._alarms = [*reversed(new), *self._alarms][:_MOST_ALARMS]
        if judge == "requests" and self._examples is not None:
            self._examples.next_window()
        assert self._reference is not None
        page = render(self.config, self.status(), self._history, self._reference.profile.outputs)
        self._unwritten.append((REPORT, page.encode()))
        self._save()

    def _take_snapshot(self) -> None:
        """Written whole before it is named. What cannot be written now is tried with the next window."""
        if self._examples is None:
            self._snapshot_due = 0
            return
        name, now = f"{self.config.version}-{self._history.windows}", _text(self._wall())
        try:
            made = write_snapshot(
                self._examples.texts(self._snapshot_due), self._store.root.join("snapshots"), name, now
            )
        except (JobError, OSError) as error:
            self._store.failure = str(error)
            return
        self._snapshot_due = 0
        self._snapshot = made or self._snapshot

    def _save(self) -> None:
        """One commit. What waits to be written goes first; what storage does not take stays for the next time."""
        self._saved_at = self._clock()
        failed = False
        while self._unwritten and not failed:
            failed = not self._store.write(*self._unwritten[0])
            if not failed:
                self._unwritten.popleft()
        self._dirty = failed or not self._store.save(self._state())
        if self._dirty:
            log.warning("storage: %s", self._store.failure)

    def _state(self) -> dict[str, Any]:
        assert self._requests_judge is not None
        return {
            "version": _STATE_VERSION,
            "profile": self._requests_judge.detector.profile.digest,
            "windowRequests": self.config.window_requests,
            "requests": self._requests,
            "dropped": self._dropped + self._dropped_before + sum(self._router_dropped.values()),
            "judges": [judge.state() for judge in (self._requests_judge, self._answers, self._feedback)],
            "alarms": [alarm.to_wire() for alarm in self._alarms],
            "history": self._history.state(),
            "snapshot": self._snapshot.to_wire() if self._snapshot else None,
            "examples": self._examples.state() if self._examples is not None else None,
        }

    def _restore(self, state: dict[str, Any] | None) -> None:
        """Go on with a state of this profile and window size; another one begins anew, and says so."""
        assert self._requests_judge is not None
        if state is None:
            return
        wanted = (_STATE_VERSION, self._requests_judge.detector.profile.digest, self.config.window_requests)
        if (state.get("version"), state.get("profile"), state.get("windowRequests")) != wanted:
            log.warning("the saved state is of another profile or window size: the watcher begins anew")
            return
        requests, answers, feedback = state["judges"]
        self._requests_judge.restore(requests)
        self._answers.restore(answers)
        self._feedback.restore(feedback)
        self._requests, self._dropped_before = int(state["requests"]), int(state["dropped"])
        self._alarms = [DriftAlarm.model_validate(alarm) for alarm in state["alarms"]]
        self._history.restore(state["history"])
        self._snapshot = Snapshot.model_validate(state["snapshot"]) if state["snapshot"] else None
        if self._examples is not None and state["examples"] is not None:
            self._examples.restore(state["examples"])


def _alarm(alarm: Alarm) -> DriftAlarm:
    return DriftAlarm(
        id=alarm.id,
        kind=alarm.kind.value,
        signal=alarm.signal,
        test=alarm.test,
        statistic=f"{alarm.statistic:.4g}",
        effect=f"{alarm.effect:.4g}",
        threshold=f"{alarm.threshold:.4g}",
        p_value=None if alarm.corrected is None else f"{alarm.corrected:.3g}",
        window=alarm.window,
        start=_text(alarm.start),
        end=_text(alarm.end),
    )


def _text(seconds: float) -> str:
    """Seconds since 1970 as the API writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
