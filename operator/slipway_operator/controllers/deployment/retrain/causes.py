"""What asks for a retrain: an alarm whose signal is still drifted, or a schedule that is due. Pure.

An alarm that was refused for the time being (cooldown, a rollout, no examples yet) stays pending, and is looked at
again as long as its signal is drifted. One whose signal has come back, or that speaks of a version which no longer
answers, is settled. A time of the schedule that was refused is passed over: the next one comes by itself; and however
many were missed while the clock jumped or the operator was away, they are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from slipway_api import conditions as c
from slipway_api.cron import Cron, CronError
from slipway_api.deployment import ServedVersion
from slipway_api.drift import DriftAlarm, Retrain
from slipway_operator.controllers.deployment.observed import Plan
from slipway_operator.controllers.deployment.retrain.ledger import Ledger
from slipway_operator.controllers.runs.attempts import format_time, parse_time

LONGEST_SLEEP = 3600.0  # seconds: a clock that jumps is noticed by then


@dataclass(frozen=True)
class Cause:
    """Why a retrain is wanted."""

    alarm: DriftAlarm | None = None
    scheduled: str | None = None

    @property
    def key(self) -> str:
        """What tells it from any other cause."""
        return self.alarm.id if self.alarm else str(self.scheduled)

    @property
    def words(self) -> str:
        """For messages."""
        if self.alarm is not None:
            return f"alarm {self.alarm.id} ({self.alarm.signal}, {self.alarm.kind} drift)"
        return f"schedule, due at {self.scheduled}"


def pending_alarms(retrain: Retrain, ledger: Ledger, stable: ServedVersion | None, plan: Plan) -> list[DriftAlarm]:
    """Alarms that nothing was done about, newest first; those that are void are settled on the way."""
    told = ledger.drift
    if told is None or not retrain.on_drift:
        return []
    current = ledger.current.alarm if ledger.current else None
    fresh = [one for one in told.alarms if one.id not in ledger.state.handled_alarms and one.id != current]
    if stable is not None and told.version and told.version != stable.version:
        message = f"they are of version {told.version}, and {stable.version} answers now"
        _settle(fresh, c.OTHER_VERSION, message, ledger, plan)
        return []
    over = [one for one in fresh if one.signal not in told.active]
    _settle(over, c.NO_LONGER_DRIFTED, "no longer drifted, so nothing is retrained for it", ledger, plan)
    return [one for one in fresh if one.signal in told.active]


def _settle(alarms: list[DriftAlarm], reason: str, why: str, ledger: Ledger, plan: Plan) -> None:
    """These will start nothing, and that is told, unless a retrain is at work and has more to tell."""
    if not alarms:
        return
    ledger.handle([one.id for one in alarms])
    message = f"{', '.join(sorted({one.signal for one in alarms}))}: {why}"
    if ledger.current is None and ledger.refuse(alarms[0].id, reason, message):
        plan.note("Normal", reason, message)


def due_schedule(retrain: Retrain, ledger: Ledger, now: datetime, plan: Plan) -> str | None:
    """The time of the schedule that has come, and the next one written down.

    Raises CronError for a schedule that the pattern could not refuse.
    """
    if retrain.schedule is None:
        ledger.put(next_schedule=None)
        return None
    coming = Cron.parse(retrain.schedule).next_after(now)
    if coming is None:
        ledger.put(next_schedule=None)
        raise CronError(f"{retrain.schedule!r} names a day that there never is")
    stored = ledger.state.next_schedule
    due = stored if stored is not None and parse_time(stored) <= now else None
    ledger.put(next_schedule=format_time(coming))
    plan.requeue(min((coming - now).total_seconds() + 1, LONGEST_SLEEP))
    return due
