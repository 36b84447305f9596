"""What is remembered of retrains: status.retrain, as it becomes during one decision. Pure.

A time that is yet to come is one of a clock that was wrong; it is taken for now, so that nothing is blocked for longer
than it would be from today on, and nothing is let through.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from slipway_api.deployment import DeploymentSpec
from slipway_api.drift import DriftStatus, RetrainRun, RetrainStage, RetrainStatus
from slipway_operator.controllers.deployment.retrain import usage
from slipway_operator.controllers.deployment.status import Draft
from slipway_operator.controllers.deployment.versions import Resolved, Unresolved
from slipway_operator.controllers.runs.attempts import format_time, parse_time

_MAX_HISTORY, _MAX_HANDLED, _MAX_STARTS = 20, 64, 100
_DAY = timedelta(days=1)
_NOTHING_REFUSED = {"refused": None, "refused_message": None, "refused_cause": None}


def digest_of(value: dict[str, Any] | None) -> str:
    """Changes when the value does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Ledger:
    """status.retrain, being written."""

    def __init__(self, draft: Draft) -> None:
        found = RetrainStatus.model_validate(draft.value("retrain") or {})
        self._now = draft.time
        starts = [min(parse_time(start), self._now) for start in found.starts]
        kept = [format_time(start) for start in starts if self._now - start < _DAY]
        history = list(found.history)
        if history and history[0].ended and parse_time(history[0].ended) > self._now:
            history[0] = history[0].model_copy(update={"ended": format_time(self._now)})
        self.state = found.model_copy(
            update={"starts": kept, "history": history, "usage": usage.add(found.usage, Decimal(0), self._now)}
        )
        told = draft.value("drift")
        self.drift = DriftStatus.model_validate(told) if told else None

    @property
    def current(self) -> RetrainRun | None:
        """The retrain at work."""
        return self.state.current

    @property
    def last(self) -> RetrainRun | None:
        """The one that ended last."""
        return self.state.history[0] if self.state.history else None

    @property
    def last_end(self) -> datetime | None:
        """When the last one ended."""
        ended = self.last.ended if self.last else None
        return parse_time(ended) if ended else None

    def put(self, **fields: Any) -> None:
        """Set fields of status.retrain."""
        self.state = self.state.model_copy(update=fields)

    def change(self, **fields: Any) -> RetrainRun:
        """Set fields of the retrain at work."""
        assert self.current is not None
        changed = self.current.model_copy(update=fields)
        self.put(current=changed)
        return changed

    def begin(self, run: RetrainRun) -> None:
        """Write the intent down. Its jobs are made by the next decision, which finds it in what was stored."""
        self.put(
            current=run,
            begun=self.state.begun + 1,
            starts=[format_time(self._now), *self.state.starts][:_MAX_STARTS],
            **_NOTHING_REFUSED,
        )

    def end(self, stage: RetrainStage, reason: str, message: str, hours: Decimal) -> RetrainRun:
        """The retrain at work is over. What it was about is settled, unless it failed: then it is tried again."""
        assert self.current is not None
        now = format_time(self._now)
        run = self.current.model_copy(
            update={
                "stage": stage,
                "reason": reason,
                "message": message[:4096],
                "ended": now,
                "gpu_hours": usage.in_words(hours),
            }
        )
        if stage == "Promoted":
            self.put(
                model=run.model,
                model_digest=run.model_digest,
                model_run=run.id,
                model_requirements=run.requirements,
                failures=0,
            )
        elif stage in ("Rejected", "Failed"):
            self.put(failures=self.state.failures + 1)
        if stage != "Failed" and run.alarm is not None:
            self.handle([run.alarm])
        self.put(
            current=None,
            history=self._trimmed([run, *self.state.history]),
            usage=usage.add(self.state.usage, hours, self._now),
            **_NOTHING_REFUSED,
        )
        return run

    def _trimmed(self, history: list[RetrainRun]) -> list[RetrainRun]:
        """The newest, and the one whose model serves."""
        serving = [run for run in history[_MAX_HISTORY - 1 :] if run.id == self.state.model_run]
        return [*history[: _MAX_HISTORY - 1], *(serving or history[_MAX_HISTORY - 1 : _MAX_HISTORY])]

    def handle(self, alarms: list[str]) -> None:
        """These alarms are never looked at again."""
        handled = [*alarms, *(one for one in self.state.handled_alarms if one not in alarms)]
        self.put(handled_alarms=handled[:_MAX_HANDLED])

    def refuse(self, cause: str, reason: str, message: str) -> bool:
        """Nothing begins now. Whether that is news: another cause or another reason than the last time."""
        news = (self.state.refused_cause, self.state.refused) != (cause, reason)
        self.put(refused=reason, refused_message=message[:4096], refused_cause=cause[:256])
        return news

    def heed(self, spec: DeploymentSpec, named: Resolved | Unresolved) -> bool:
        """Whether the user has named another model since: then nothing that was retrained is wanted any more.

        `named` is what spec.model leads to. A TrainJob that was trained again under its name leads to another model,
        and that is the user's word too; one that is not there says nothing.
        """
        retrain = spec.drift.retrain if spec.drift else None
        asked = digest_of(retrain.to_wire() if retrain else None)
        model, _, resolved_before = self.state.asked_model.partition("/")
        now = digest_of(spec.model.to_wire())
        resolved = digest_of({"uri": named.uri, "digest": named.digest}) if isinstance(named, Resolved) else ""
        changed = bool(model) and model != now
        if not changed:
            changed = bool(resolved and resolved_before) and resolved != resolved_before
            resolved = resolved or resolved_before
        if changed or (self.state.asked_retrain and asked != self.state.asked_retrain):
            self.put(failures=0)
        if changed:
            self.put(model=None, model_digest="", model_run=None, model_requirements=[])
        self.put(asked_model=f"{now}/{resolved}", asked_retrain=asked)
        return changed

    def save(self, draft: Draft) -> None:
        """Put it into the status to be written."""
        draft.put("retrain", self.state.to_wire())
