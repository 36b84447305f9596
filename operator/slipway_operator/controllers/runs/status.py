"""The draft of a run's status: starts from what is stored, changed by the decision, written once. Pure."""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any

from slipway_api import conditions as c
from slipway_api.trainjob import Workers
from slipway_operator.config import PoolConfig
from slipway_operator.controllers.runs import usage
from slipway_operator.controllers.runs.attempts import format_time, parse_time
from slipway_operator.planner.cost import Rate

MAX_RECORDS = 20
_MAX_MESSAGE = 4096


class StatusDraft:
    """A mutable status; every change goes through here so that times and generations are set in one place."""

    def __init__(self, status: dict[str, Any], generation: int, now: datetime) -> None:
        self._status = status
        self._generation = generation
        self.now = format_time(now)

    @classmethod
    def of(cls, job: dict[str, Any], now: datetime) -> StatusDraft:
        """A draft that starts from what the job's status says; the job is left as it is."""
        return cls(copy.deepcopy(job.get("status") or {}), job["metadata"].get("generation", 0), now)

    # --- reading --------------------------------------------------------------------------------------------------

    def value(self, key: str) -> Any:
        """A field of status, or None."""
        return self._status.get(key)

    def records(self) -> list[dict[str, Any]]:
        """The attempts so far, oldest first."""
        attempts: list[dict[str, Any]] = self._status.get("attempts", [])
        return attempts

    def last_number(self) -> int:
        """The number of the newest attempt, also where its record belongs to an earlier run; 0 before the first."""
        return int(self.records()[-1]["number"] if self.records() else self._status.get("attempt", 0))

    def current_attempt(self) -> int | None:
        """The number of the attempt that has not ended, or None."""
        return self.last_number() if self.records() and not self.records()[-1].get("outcome") else None

    def last_ended_attempt(self) -> int | None:
        """The number of the newest attempt whose end is in this status."""
        return next((r["number"] for r in reversed(self.records()) if r.get("outcome")), None)

    def stopped_by_us(self) -> bool:
        """Whether the newest attempt did not end by itself, so that its RayJob must be deleted to stop it."""
        return bool(self.records()) and self.records()[-1].get("outcome") in ("DeadlineExceeded", "Suspended")

    def reason(self, type_: str) -> str | None:
        """The reason of a condition, or None before it was first set."""
        condition = c.find_condition(self._status.get("conditions", []), type_)
        return condition["reason"] if condition else None

    def since(self, type_: str, reason: str) -> datetime | None:
        """When a condition last changed its status, if it has this reason now."""
        condition = c.find_condition(self._status.get("conditions", []), type_)
        return parse_time(condition["lastTransitionTime"]) if condition and condition["reason"] == reason else None

    def is_true(self, type_: str) -> bool:
        """Whether a condition is True."""
        return c.is_true(self._status.get("conditions", []), type_)

    def finished(self) -> bool:
        """Whether the job is over for good."""
        conditions = self._status.get("conditions", [])
        return c.is_true(conditions, c.SUCCEEDED) or c.is_true(conditions, c.FAILED)

    # --- changing -------------------------------------------------------------------------------------------------

    def put(self, key: str, value: Any) -> None:
        """Set a field of status."""
        self._status[key] = value

    def put_pool(self, pool: PoolConfig | None) -> None:
        """Where the plan has placed the job."""
        if pool is None:
            self._status.pop("pool", None)
        else:
            self._status["pool"] = pool.name

    def set(self, type_: str, status: c.Status, reason: str, message: str) -> None:
        """Set a condition."""
        self._status["conditions"] = c.set_condition(
            self._status.get("conditions", []),
            type_,
            status,
            reason,
            message,
            generation=self._generation,
            now=self.now,
        )

    def begin_attempt(self, number: int, start: str, ray_job_name: str) -> None:
        """Open a record. What the previous attempt said of itself stays until the new one says otherwise."""
        records = [*self.records(), {"number": number, "startTime": start}]
        self._status["attempts"] = records[-MAX_RECORDS:]
        self._status["attempt"] = number
        self._status["rayJobName"] = ray_job_name
        self._status.setdefault("startTime", start)
        self._status.pop("nextAttemptTime", None)

    def admit_attempt(self, number: int) -> None:
        """The attempt has left its queue: from here on it uses something."""
        next(r for r in self.records() if r["number"] == number)["startTime"] = self.now

    def end_attempt(self, number: int, outcome: str, message: str, workers: Workers, rate: Rate) -> None:
        """Close a record and add what the attempt has used: in a queue, nothing."""
        record = next(r for r in self.records() if r["number"] == number)
        if self.reason(c.RUNNING) == c.WAITING_FOR_QUOTA:
            record["startTime"] = self.now
        record.update(outcome=outcome, message=message[:_MAX_MESSAGE], endTime=self.now)
        seconds = max(0, int((parse_time(self.now) - parse_time(record["startTime"])).total_seconds()))
        self._status["usage"] = usage.total([self._status.get("usage", {}), usage.of(seconds, workers, rate)])

    def succeed(self, reason: str, message: str) -> None:
        """The job has its result."""
        self._status["completionTime"] = self.now
        self.set(c.SUCCEEDED, "True", reason, message)
        self.set(c.FAILED, "False", c.NOT_FAILED, "the job succeeded")
        self.set(c.RUNNING, "False", c.FINISHED, "the job has finished")

    def fail(self, reason: str, message: str) -> None:
        """The job is over without a result."""
        self._status["completionTime"] = self.now
        self._status.pop("nextAttemptTime", None)
        self.set(c.FAILED, "True", reason, message)
        self.set(c.SUCCEEDED, "False", reason, "the job has failed; see the condition Failed")
        self.set(c.RUNNING, "False", c.FINISHED, "the job has finished")

    def finish(self) -> dict[str, Any]:
        """The status to write."""
        if not self.finished():
            self.set(c.SUCCEEDED, "False", c.IN_PROGRESS, "the job has not finished")
            self.set(c.FAILED, "False", c.IN_PROGRESS, "the job has not finished")
        self._status["observedGeneration"] = self._generation
        self._status["state"] = self._state()
        return self._status

    def _state(self) -> str:
        """The conditions in one word, for people."""
        conditions = self._status.get("conditions", [])
        for type_ in (c.SUCCEEDED, c.FAILED, c.SUSPENDED):
            if c.is_true(conditions, type_):
                return type_
        running = c.find_condition(conditions, c.RUNNING)
        return str(running["reason"]) if running else "Pending"
