"""`slipway logs`: what runs printed; with -f over all further attempts until the job has finished."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from slipway_cli import jobs, session
from slipway_cli.errors import LogError, UsageError
from slipway_cli.follow import follow
from slipway_cli.options import choice_of
from slipway_cli.resources import Discovered
from slipway_cli.run_logs import Follower, log_files
from slipway_cli.session import Session
from slipway_cli.terminal import one_line
from slipway_operator.kube.resource import Json

_LOCAL_SECONDS = 0.25  # between two looks at a file of this machine
_REMOTE_SECONDS = 3.0  # at an object store, where a look costs a request (and a run sends its log every 5 s)
_QUIET_SECONDS = 1.5  # a log that did not grow for that long after its attempt's end is complete


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints the log. Raises LogError when there is none."""

    async def command(opened: Session) -> int:
        kind, name = await opened.one(arguments.what)
        if kind.resource.kind not in jobs.SHORT:
            raise UsageError(
                f"logs are of TrainJobs, EvalJobs and the compressions of Deployments, not of {kind.resource.kind}",
                hint="slipway logs tj/NAME",
            )
        found = await opened.get(kind, name)
        job = jobs.run_of(found)
        if job is None:
            raise LogError(
                f"{jobs.label_of(found)} has had no compression, which is all that it runs besides its replicas",
                hint="the replicas' logs: kubectl logs of their pods",
            )
        if arguments.attempt and not arguments.follow and arguments.attempt > jobs.attempt_of(job):
            label = jobs.label_of(job)
            raise LogError(f"{label} has had {_attempts(jobs.attempt_of(job))}", hint=f"slipway describe {label}")
        if not arguments.follow:
            return _show(opened, job, arguments.attempt or jobs.attempt_of(job), arguments.tail)
        follower = _JobFollower(opened, kind, job, arguments.attempt, arguments.tail)
        return await follower.run()

    return session.run(choice_of(arguments), environment, command)


def _attempts(count: int) -> str:
    return {0: "no attempt yet", 1: "one attempt"}.get(count, f"{count} attempts")


def _note(text: str) -> None:
    """Says something about the log without becoming part of it."""
    print(f"[slipway] {one_line(text)}", file=sys.stderr, flush=True)


def _write(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _show(opened: Session, job: Json, attempt: int, tail: int | None) -> int:
    """What there is now of one attempt."""
    label = jobs.label_of(job)
    follower = Follower(tail)
    sys.stdout.flush()
    for piece in follower.read(log_files(job, attempt, opened.target.local_state)) if attempt else ():
        _write(piece)
    if not follower.place:
        if follower.unreadable is not None:
            raise follower.unreadable
        which = f"attempt {attempt} of {label}" if attempt else label
        raise LogError(
            f"{which} has printed nothing yet: {jobs.why(job)}",
            hint=f"slipway logs {label} -f   waits for it" if not jobs.finished(job) else f"slipway describe {label}",
        )
    if attempt > 1 and attempt == jobs.attempt_of(job):
        _note(f"this was attempt {attempt}; earlier ones: --attempt 1 to {attempt - 1}")
    return 0


@dataclass
class _Latest:
    """The newest state of the job that is being followed."""

    job: Json
    gone: bool = False
    away: str = ""


class _JobFollower:
    """Prints one attempt after the other, and says on standard error what it waits for meanwhile."""

    def __init__(self, opened: Session, kind: Discovered, job: Json, only: int | None, tail: int | None) -> None:
        self._opened, self._kind, self._only, self._tail = opened, kind, only, tail
        self._latest = _Latest(job)
        self._said = ""

    async def run(self) -> int:
        """Until the job, or the one attempt that was asked for, has ended and its log is complete."""
        watcher = asyncio.create_task(self._watch())
        try:
            attempt = self._only or max(1, jobs.attempt_of(self._latest.job))
            while await self._attempt(attempt, watcher):
                attempt += 1
            return 0
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self) -> None:
        job, resource = self._latest.job, self._kind.resource
        uid = job["metadata"]["uid"]
        changes = follow(self._opened.client, resource, self._opened.scope(resource), name=jobs.name_of(job))
        async with contextlib.aclosing(changes) as stream:
            async for change in stream:
                self._latest.away = change.message if change.type == "away" else ""
                if change.type == "deleted" or (change.obj and change.obj["metadata"]["uid"] != uid):
                    self._latest.gone = True
                    return
                run = jobs.run_of(change.obj) if change.obj is not None else None
                if run is not None:
                    self._latest.job = run

    async def _attempt(self, attempt: int, watcher: asyncio.Task[None]) -> bool:
        """Follows one attempt to its end; whether another is to be followed."""
        follower, quiet = Follower(self._tail), 0.0
        announced = False
        while True:
            if watcher.done() and not self._latest.gone:
                watcher.result()  # raises what ended it
            latest = self._latest
            over = latest.gone or jobs.attempt_ended(latest.job, attempt)
            files = log_files(latest.job, attempt, self._opened.target.local_state)
            grew = False
            for piece in follower.read(files) if jobs.attempt_of(latest.job) >= attempt else ():
                if not announced and attempt > 1:
                    _note(f"attempt {attempt}")
                announced = grew = True
                _write(piece)
            pause = _LOCAL_SECONDS if self._opened.target.local_state else _REMOTE_SECONDS
            quiet = 0.0 if grew else quiet + pause
            if over and quiet >= _QUIET_SECONDS:
                self._tail = None
                return self._conclude(attempt, follower)
            if follower.place or not over:
                self._explain(attempt, follower)
            await asyncio.sleep(pause)

    def _explain(self, attempt: int, follower: Follower) -> None:
        """Says, once, what keeps the next line from coming, where that is not the run itself."""
        latest = self._latest
        text = ""
        if latest.away:
            text = f"the API server does not answer ({latest.away}); still reading the log"
        elif follower.unreadable is not None:
            raise follower.unreadable
        elif not follower.place:
            text = f"waiting for attempt {attempt}: {jobs.why(latest.job)}"
        if text and text != self._said:
            self._said = text
            _note(text)

    def _conclude(self, attempt: int, follower: Follower) -> bool:
        latest = self._latest
        label = jobs.label_of(latest.job)
        if not follower.place:
            if follower.unreadable is not None:
                raise follower.unreadable
            _note(f"attempt {attempt} printed nothing")
        if latest.gone:
            _note(f"{label} was deleted")
            return False
        if self._only:
            return False
        if jobs.finished(latest.job) and jobs.attempt_of(latest.job) <= attempt:
            _note(f"{label} {jobs.end_of(latest.job)}")
            return False
        record = next((r for r in jobs.attempt_records(latest.job) if r.get("number") == attempt), {})
        _note(f"attempt {attempt} ended: {record.get('outcome', '')}: {record.get('message', '')}")
        return True
