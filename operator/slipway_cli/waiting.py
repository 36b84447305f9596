"""What `slipway wait` waits for, and what an object says about it: met, not yet, or never any more. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slipway_api import conditions as c
from slipway_cli import jobs
from slipway_cli.errors import UsageError

Json = dict[str, Any]


@dataclass(frozen=True)
class Deletion:
    """`--for=delete`."""

    def __str__(self) -> str:
        return "delete"


@dataclass(frozen=True)
class ConditionStatus:
    """`--for=condition=TYPE[=STATUS]`, compared without regard to case, as kubectl does."""

    type: str
    status: str = "True"

    def __str__(self) -> str:
        return f"condition {self.type}" + ("" if self.status.casefold() == "true" else f"={self.status}")


Goal = Deletion | ConditionStatus


@dataclass(frozen=True)
class Verdict:
    """Whether the goal is met; if not, whether it still can be, and what stands in the way."""

    met: bool
    possible: bool = True
    message: str = ""


def parse_goal(text: str) -> Goal:
    """The goal that `--for` names. Raises UsageError for any other."""
    if text.casefold() == "delete":
        return Deletion()
    word, _, rest = text.partition("=")
    type_, has_status, status = rest.partition("=")
    if word.casefold() != "condition" or not type_ or (has_status and not status):
        raise UsageError(
            f"--for={text} is not something to wait for",
            hint="--for=condition=Succeeded, --for=condition=Running=False or --for=delete",
        )
    return ConditionStatus(type_, status or "True")


def judge(goal: Goal, obj: Json | None) -> Verdict:
    """What the object, or its absence, says about the goal."""
    if isinstance(goal, Deletion):
        return Verdict(obj is None, message="it still exists")
    if obj is None:
        return Verdict(False, possible=False, message="it was deleted")
    found = next(
        (one for one in jobs.conditions_of(obj) if str(one.get("type", "")).casefold() == goal.type.casefold()), None
    )
    generation = (obj.get("metadata") or {}).get("generation")
    over = jobs.is_run(obj) and jobs.finished(obj)
    matches = found is not None and str(found.get("status", "")).casefold() == goal.status.casefold()
    # A finished job never changes again, whatever is edited afterwards (but for its gates: then Passed is judged anew).
    if found and matches and (over or _current(found, generation)):
        return Verdict(True)
    if jobs.is_run(obj):
        if over:
            verdict = found and str(found.get("type")) == c.PASSED and not c.is_true(jobs.conditions_of(obj), c.FAILED)
            told = f"{found['reason']}: {found['message']}" if found and verdict else jobs.end_of(obj)
            return Verdict(False, possible=False, message=told)
        return Verdict(False, message=jobs.why(obj))
    if found:
        return Verdict(False, message=f"{found.get('status')}: {found.get('reason', '')}: {found.get('message', '')}")
    return Verdict(False, message=f"it has no condition {goal.type}")


def _current(condition: Json, generation: Any) -> bool:
    """Whether the condition speaks of the spec as it is now, where it says so at all."""
    observed = condition.get("observedGeneration")
    return not (isinstance(observed, int) and isinstance(generation, int) and observed < generation)
