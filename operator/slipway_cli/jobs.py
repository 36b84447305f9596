"""What the status of a TrainJob, an EvalJob or a Deployment's compression says, for people.

Pure; every reader takes the raw object and survives a missing field.
"""

from __future__ import annotations

from typing import Any

from slipway_api import conditions as c

Json = dict[str, Any]


def status_of(obj: Json) -> Json:
    """The status, or {}."""
    found = obj.get("status")
    return found if isinstance(found, dict) else {}


def conditions_of(obj: Json) -> list[Json]:
    """The conditions, or []."""
    found = status_of(obj).get("conditions")
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def name_of(obj: Json) -> str:
    """metadata.name."""
    return str((obj.get("metadata") or {}).get("name") or "")


SHORT = {"TrainJob": "tj", "EvalJob": "ej", "Deployment": "sdeploy"}
"""Our kinds, and how people type them."""


def is_ours(obj: Json, kind: str) -> bool:
    """Whether this object is one of our kinds, of any version."""
    return obj.get("kind") == kind and str(obj.get("apiVersion", "")).startswith("slipway.dev/")


def is_run(obj: Json) -> bool:
    """Whether this object is carried out as a run: a TrainJob or an EvalJob."""
    return is_ours(obj, "TrainJob") or is_ours(obj, "EvalJob")


def run_of(obj: Json) -> Json | None:
    """The object as a run: a Deployment with the status of its newest compression, None where it has had none."""
    if not is_ours(obj, "Deployment"):
        return obj
    compression = status_of(obj).get("compression")
    return obj | {"status": compression} if isinstance(compression, dict) else None


def label_of(obj: Json) -> str:
    """The object as people type it: tj/NAME."""
    kind = str(obj.get("kind"))
    return f"{SHORT.get(kind, kind.lower())}/{name_of(obj)}"


def finished(obj: Json) -> bool:
    """Whether a run has reached its end."""
    conditions = conditions_of(obj)
    return c.is_true(conditions, c.SUCCEEDED) or c.is_true(conditions, c.FAILED)


def end_of(obj: Json) -> str:
    """How it ended, as "Failed (UserError): message"; "" while it goes on."""
    for type_ in (c.FAILED, c.SUCCEEDED):
        condition = c.find_condition(conditions_of(obj), type_)
        if condition and condition.get("status") == "True":
            return f"{type_} ({condition.get('reason', '')}): {condition.get('message', '')}"
    return ""


def stage(obj: Json) -> str:
    """The job's state in one word, as its own column says it."""
    return str(status_of(obj).get("state") or "Pending")


def why(obj: Json) -> str:
    """What it is doing or waiting for now, as "WaitingForResources: message"."""
    ended = end_of(obj)
    if ended:
        return ended
    conditions = conditions_of(obj)
    suspended = c.find_condition(conditions, c.SUSPENDED)
    running = c.find_condition(conditions, c.RUNNING)
    planned = c.find_condition(conditions, c.PLANNED)
    if suspended and suspended.get("status") == "True":
        shown = suspended
    elif planned and planned.get("status") == "False":
        shown = planned
    elif running:
        shown = running
    else:
        return "the operator has not looked at it yet"
    return f"{shown.get('reason', '')}: {shown.get('message', '')}"


def attempt_of(obj: Json) -> int:
    """The current attempt's number, 0 before the first."""
    number = status_of(obj).get("attempt")
    return number if isinstance(number, int) else 0


def attempt_records(obj: Json) -> list[Json]:
    """The attempts, oldest first."""
    found = status_of(obj).get("attempts")
    return sorted((r for r in found if isinstance(r, dict)), key=lambda r: r.get("number", 0)) if found else []


def attempt_ended(obj: Json, number: int) -> bool:
    """Whether that attempt has an outcome, or is not the newest any more, or the whole job has ended."""
    record = next((r for r in attempt_records(obj) if r.get("number") == number), None)
    return bool(record and record.get("outcome")) or attempt_of(obj) > number or finished(obj)
