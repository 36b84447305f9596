"""What a failure means: from any exception to the one JobError that says why the run ended. Needs no torch and no ray.

Two places ask. A worker turns whatever its training function threw into a JobError before it leaves the process, so
that it crosses process borders as two strings. The driver then has a failure for each rank that has spoken, and picks
the cause: when one rank fails, the others fail too, a moment later, of a broken connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from slipway_api.run import Outcome
from slipway_jobs.errors import InfrastructureError, JobError, OutOfMemory, Preempted

WORKER_LOST = "WorkerLost"
PEER_LOST = "PeerLost"
UNEXPECTED = "UnexpectedError"

# Only these are worth starting the workers again for, within the attempt. The rest is for the operator to decide.
RESTARTABLE = frozenset({WORKER_LOST, PEER_LOST, "WorkersNotStarted", "StorageFailed", "NodePreempted"})

# The cause before its consequences: the first outcome that some rank reports is the run's.
_PRECEDENCE = (Outcome.USER_ERROR, Outcome.OUT_OF_MEMORY, Outcome.PREEMPTED, Outcome.INFRASTRUCTURE)
_CONSEQUENCES = (PEER_LOST,)

# What to do about it, for messages.
SMALLER = (
    "use a smaller training.microBatchSize, more workers, activationCheckpointing or more workers.resources.memory"
)

_RAY_OOM = re.compile(r"memory monitor|OutOfMemoryError|running low on memory|out of memory", re.IGNORECASE)
_OOM_CLASSES = {"MemoryError", "OutOfMemoryError"}


def job_error(error: BaseException, rank: int | None = None) -> JobError:
    """Any exception as a JobError. One that nobody foresaw keeps its class and text: a bug must look like one."""
    if isinstance(error, JobError):
        return error
    who = "the driver" if rank is None else f"rank {rank}"
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _OOM_CLASSES:
        return OutOfMemory("OutOfMemory", f"{who} ran out of memory ({_first_line(error)}); {SMALLER}")
    if "RayActorError" in names:
        return _worker_lost(error, who)
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return Preempted("Interrupted", f"{who} was told to exit")
    return InfrastructureError(
        UNEXPECTED, f"{who}: {type(error).__name__}: {_first_line(error)}; the log has the traceback"
    )


def _worker_lost(error: BaseException, who: str) -> JobError:
    if _RAY_OOM.search(str(error)):
        return OutOfMemory("OutOfMemory", f"{who} was killed because its node ran out of memory; {SMALLER}")
    if getattr(error, "preempted", False):
        return InfrastructureError("NodePreempted", f"the node of {who} was taken away")
    return InfrastructureError(WORKER_LOST, f"the process of {who} died; it was killed, crashed, or its node failed")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__


def cause(failures: dict[int, BaseException], world_size: int = 0) -> JobError:
    """The one error of a run, from what each rank that has spoken threw (rank -> exception, at least one).

    When all that is known is that ranks lost a peer, the message names those that have not spoken: one of them hangs.
    """
    errors = [job_error(_unwrap(error), rank) for rank, error in sorted(failures.items())]
    for outcome in _PRECEDENCE:
        same = [error for error in errors if error.outcome is outcome]
        first = next((error for error in same if error.reason not in _CONSEQUENCES), None)
        if first is not None:
            return first
        if same:
            silent = ", ".join(str(rank) for rank in range(world_size) if rank not in failures)
            return InfrastructureError(
                PEER_LOST, same[0].message + (f"; not heard from: rank {silent}" if silent else "")
            )
    return errors[0]


def ray_error(error: BaseException, world_size: int = 0) -> JobError:
    """What `trainer.fit()` threw, as the run's one error."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return cause(failures, world_size)
    inner = _unwrap(getattr(error, "controller_failure", None) or error)
    names = {cls.__name__ for cls in type(inner).__mro__}
    if names & {"WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"}:
        return InfrastructureError("WorkersDoNotFit", f"Ray cannot place the workers: {_first_line(inner)}")
    if "PreemptionError" in names:
        return InfrastructureError("NodePreempted", f"a node was taken away: {_first_line(inner)}")
    if "WorkerGroupStartupFailedError" in names:
        return InfrastructureError("WorkersNotStarted", "a worker process died while it started")
    if "RayActorError" in names:
        return InfrastructureError("ControllerLost", "the process that controls the workers died")
    return job_error(inner)


def _unwrap(error: BaseException) -> BaseException:
    """The exception that a Ray exception is about."""
    for inner in _inner(error):
        return _unwrap(inner)
    return error


def _inner(error: BaseException) -> Iterator[BaseException]:
    for name in ("health_check_failure", "_base_exc", "controller_failure", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException) and inner is not error:
            yield inner


class OomKills:
    """Whether the kernel has killed for memory in this process's cgroup (or, outside of any, on this machine).

    A worker that dies of SIGKILL leaves no word; on the driver's node the kernel's counter tells why
    (memory.events of cgroup v2, https://docs.kernel.org/admin-guide/cgroup-v2.html; /proc/vmstat).
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before = self._count()

    def any_since(self) -> bool:
        """Whether the counter has grown since construction or the last call that said so."""
        count = self._count()
        grown = count > self._before
        self._before = max(count, self._before)
        return grown

    def _count(self) -> int:
        for path in self._candidates():
            try:
                fields = dict(line.split()[:2] for line in path.read_text().splitlines() if " " in line)
            except OSError:
                continue
            if fields.get("oom_kill", "").isdigit():
                return int(fields["oom_kill"])
        return 0

    def _candidates(self) -> Iterable[Path]:
        try:
            for line in (self._root / "proc/self/cgroup").read_text().splitlines():
                if line.startswith("0::/"):
                    yield self._root / "sys/fs/cgroup" / line[4:] / "memory.events"
        except OSError:
            pass
        yield self._root / "sys/fs/cgroup/memory.events"
        yield self._root / "proc/vmstat"


class RestartBudget:
    """How often the workers may start again within one attempt. Those with a new checkpoint between them are free."""

    def __init__(self, limit: int = 3) -> None:
        self.limit = limit
        self.used = 0
        self._step = -1

    def spend(self, checkpoint_step: int | None) -> bool:
        """Whether one more restart is allowed, given the newest checkpoint's step (None: there is none)."""
        step = -1 if checkpoint_step is None else checkpoint_step
        if step > self._step:
            self._step, self.used = step, 0
        self.used += 1
        return self.used <= self.limit
