"""Who runs next: whole jobs only, highest priority first, then the oldest, then by name. Pure.

A service queues like a job; it never ends by itself, so what it holds is missing for as long as it exists.

The order is strict: while the job at the front waits for room, nobody behind it starts, even if it would fit. That
leaves some of a small machine idle now and then, and in return no big job ever starves. Running jobs are never
pre-empted.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.resources import Resources, describe, describe_shortage

# Beyond this, a place in the queue is not told exactly: each end of a job would rewrite the status of all that wait.
_TELL_AHEAD = 20


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that wants to run."""

    namespace: str
    name: str
    uid: str
    created: str  # RFC 3339 in UTC: sorts as text
    priority: int
    need: Resources

    @property
    def rank(self) -> tuple[int, str, str, str, str]:
        """Lowest first."""
        return (-self.priority, self.created, self.namespace, self.name, self.uid)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a job may start now; if not, `message` says what it waits for."""

    admitted: bool
    message: str = ""


def admit(waiting: list[Waiting], free: Resources, capacity: Resources) -> dict[str, Verdict]:
    """The verdict on each waiting job, by uid. What is admitted together fits together."""
    verdicts: dict[str, Verdict] = {}
    blocked = False
    ahead = 0
    for job in sorted(waiting, key=lambda job: job.rank):
        if not blocked and job.need.fits(free):
            free = free - job.need
            verdicts[job.uid] = Verdict(True)
            continue
        blocked = True
        verdicts[job.uid] = Verdict(False, _waiting_for(job.need, free, capacity, ahead))
        ahead += 1
    return verdicts


def _waiting_for(need: Resources, free: Resources, capacity: Resources, ahead: int) -> str:
    shortage = describe_shortage(need, free, capacity) or "enough is free, but older or more important jobs come first"
    jobs = f"{_TELL_AHEAD} or more jobs" if ahead >= _TELL_AHEAD else f"{ahead} job{'' if ahead == 1 else 's'}"
    return f"waiting for {describe(need)}: {shortage}, {jobs} ahead"


def refuse_impossible(
    need: Resources, capacity: Resources, *, what: str = "job", path: str = "spec.rayClusterSpec.workerGroupSpecs"
) -> None:
    """Raises InvalidSpec for what could not run here even if nothing else did."""
    if need.fits(capacity):
        return
    lower = [
        name
        for name, too_much in (
            ("CPUs", need.cpu > capacity.cpu),
            ("GPUs", need.gpu > capacity.gpu),
            ("memory", need.memory > capacity.memory),
        )
        if too_much
    ]
    has = Resources(capacity.cpu, capacity.gpu, capacity.memory if "memory" in lower else Decimal(0))
    without = " and no GPU" if "GPUs" in lower and not capacity.gpu else ""
    raise InvalidSpec(
        path,
        f"the {what} needs {describe(need)}, this machine has {describe(has)}{without}: "
        f"use fewer workers, or ask for less of {' and '.join(lower)} per worker",
    )
