"""Workers of an evaluation as Ray actors: who gets which call, and what happens when one of them dies.

A call is sent to whichever worker is free, one more than it works on, so that none waits for the driver. Only the last
calls are kept back until a worker is free: behind a long one they would wait while others have nothing to do. A worker
that dies is replaced, and what it had is asked again: a call commits its work by one rename or gives it back whole, so
doing it twice changes nothing. A call that has lost its worker several times ends the run, as does a pool in which
nothing gets done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from slipway_api.run import EvalRunSpec
from slipway_jobs.errors import InfrastructureError, OutOfMemory
from slipway_jobs.evaluate.benchmark_engine import Part
from slipway_jobs.evaluate.worker import Done, EvalWorker, Failed, Which
from slipway_jobs.ray_cluster import worker_resources
from slipway_jobs.train.failures import OomKills, job_error

_AHEAD = 2  # calls that a worker has at once
_LOSSES = 3  # of one call, or without anything done in between
_POLL_SECONDS = 0.5


@dataclass
class Call:
    """One thing to be done by any worker. Calls of a `group` that is given up are not made any more."""

    method: str
    arguments: tuple[Any, ...]
    group: str = ""
    alone: bool = False  # nothing else may run meanwhile: it measures time
    about: Any = None  # the caller's own
    losses: int = 0


@dataclass
class _Slot:
    rank: int
    actor: Any
    calls: dict[Any, Call] = field(default_factory=dict)  # by reference, in the order they were sent


def next_worker(held: Sequence[int], waiting: int) -> int | None:
    """Who gets the next of the `waiting` calls, where each worker holds so many: None, if it is better kept."""
    least = min(held)
    if least == 0 or (least < _AHEAD and waiting > len(held)):
        return held.index(least)
    return None


class WorkerPool:
    """So many actors as the run asks for. Not for several threads."""

    def __init__(self, run: EvalRunSpec, *, say: Callable[[str], None]) -> None:
        self._run = run
        self._document = run.model_copy(update={"report": None}).model_dump_json()
        self._say = say
        self._kills = OomKills()
        self._losses = 0
        self._slots = [_Slot(rank, self._start(rank)) for rank in range(run.workers.count)]

    def _start(self, rank: int) -> Any:
        resources = worker_resources(self._run.workers.resources)
        options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0.0), "max_restarts": 0}
        return ray.remote(EvalWorker).options(**options).remote(self._document, rank)

    def prepare(self, which: Which) -> None:
        """Have every worker load a model, without waiting for it."""
        for slot in self._slots:
            slot.actor.load.remote(which)

    def work(self, calls: Iterable[Call], settle: Callable[[Call, Done | Failed], bool]) -> None:
        """Make every call. `settle` gets each result and says whether the call's group goes on.

        Raises InfrastructureError WorkerLost, OutOfMemory, and what `settle` raises.
        """
        for slot in self._slots:
            slot.calls.clear()  # of a list that was given up halfway: nobody waits for them any more
        waiting = deque(calls)
        given_up: set[str] = set()
        while True:
            while waiting and waiting[0].group in given_up:
                waiting.popleft()
            self._fill(waiting, given_up)
            flying = {reference: slot for slot in self._slots for reference in slot.calls}
            if not flying:
                return
            for reference in ray.wait(list(flying), num_returns=1, timeout=_POLL_SECONDS)[0]:
                slot = flying[reference]
                try:
                    result = ray.get(reference)
                except RayActorError as error:
                    self._replace(slot, waiting, error)
                    continue
                except RayError as error:  # the call itself cannot raise: this is about carrying it
                    raise job_error(error, slot.rank) from error
                call = slot.calls.pop(reference)
                self._losses = 0
                if isinstance(result, Done):
                    self._fill(waiting, given_up)  # the worker goes on while the driver settles
                if call.group not in given_up and not settle(call, result):
                    given_up.add(call.group)

    def ask(self, which: Which, parts: Sequence[Part]) -> list[Sequence[Any]]:
        """Answers to the parts of a benchmark's requests, in order, worked on by all.

        Raises the JobError of the first part that fails.
        """
        answers: list[Sequence[Any]] = [()] * len(parts)

        def settle(call: Call, result: Done | Failed) -> bool:
            if isinstance(result, Failed):
                raise result.error
            answers[call.about] = result.value
            return True

        self.work([Call("answer", (which, part), about=number) for number, part in enumerate(parts)], settle)
        return answers

    def _fill(self, waiting: deque[Call], given_up: set[str]) -> None:
        """Send what may be sent."""
        while True:
            while waiting and waiting[0].group in given_up:
                waiting.popleft()
            flying = [call for slot in self._slots for call in slot.calls.values()]
            if not waiting or any(call.alone for call in flying) or (waiting[0].alone and flying):
                return
            rank = next_worker([len(slot.calls) for slot in self._slots], len(waiting))
            if rank is None:
                return
            self._send(self._slots[rank], waiting.popleft())

    def _send(self, slot: _Slot, call: Call) -> None:
        reference = getattr(slot.actor, call.method).remote(*call.arguments)
        slot.calls[reference] = call

    def _replace(self, slot: _Slot, waiting: deque[Call], error: RayActorError) -> None:
        """A new worker for one that has died; its calls come first again."""
        failure = job_error(error, slot.rank)
        if isinstance(failure, OutOfMemory) or self._kills.any_since():
            raise OutOfMemory(
                "OutOfMemory",
                f"worker {slot.rank} was killed because memory ran out; lower batchTokens, or give workers more memory "
                "(workers.resources)",
            ) from error
        lost = list(slot.calls.values())
        slot.calls.clear()
        self._losses += 1
        if lost:
            lost[0].losses += 1  # the others had not been begun
        if self._losses > _LOSSES or (lost and lost[0].losses >= _LOSSES):
            raise InfrastructureError(
                failure.reason, f"{failure.message}; it was replaced {self._losses - 1} times, and died again"
            ) from error
        self._say(f"{failure.message}; starting another")
        waiting.extendleft(reversed(lost))
        slot.actor = self._start(slot.rank)

    def close(self) -> None:
        """End every worker."""
        for slot in self._slots:
            ray.kill(slot.actor, no_restart=True)
