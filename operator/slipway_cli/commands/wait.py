"""`slipway wait`: until a condition holds or an object is gone, showing how far a run has come."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace

from slipway_cli import jobs, session
from slipway_cli.durations import parse_duration, short_duration
from slipway_cli.errors import WaitError
from slipway_cli.follow import follow
from slipway_cli.options import choice_of
from slipway_cli.progress import Display, ProgressView, display_for
from slipway_cli.resources import Discovered
from slipway_cli.session import Session
from slipway_cli.waiting import Deletion, Goal, Verdict, judge, parse_goal
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.resource import Json


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Waits for each object in turn, all within one timeout. Raises WaitError when it cannot come true any more."""
    goal, seconds = parse_goal(arguments.goal), parse_duration(arguments.timeout)

    async def command(opened: Session) -> int:
        references = await opened.references(arguments.what)
        deadline = asyncio.get_running_loop().time() + seconds
        for reference in references:
            for name in reference.names:
                await wait_for(opened, reference.kind, name, goal, deadline=deadline, seconds=seconds)
                print(f"{reference.kind.label}/{name} {'deleted' if isinstance(goal, Deletion) else 'condition met'}")
        return 0

    return session.run(choice_of(arguments), environment, command)


async def wait_for(
    opened: Session, kind: Discovered, name: str, goal: Goal, *, deadline: float, seconds: float, quiet: bool = False
) -> None:
    """Returns when the goal is met. `deadline` is of the event loop's clock; `seconds` is only for the message.

    Raises WaitError at the deadline, and at once when the goal cannot be met any more. Raises NotFound for a
    condition of an object that does not exist.
    """
    label = f"{kind.label}/{name}"
    try:
        first: Json | None = await opened.get(kind, name)
    except NotFound:
        if not isinstance(goal, Deletion):
            raise
        first = None
    verdict = judge(goal, first)
    if verdict.met:
        return
    _refuse_if_hopeless(verdict, goal, label)
    watcher = _Watcher(opened, kind, name, goal, first)
    try:
        async with asyncio.timeout_at(deadline):
            if first is not None and (jobs.is_run(first) or jobs.is_ours(first, "Deployment")) and not quiet:
                with display_for(sys.stdout) as display:
                    await watcher.run(display)
            else:
                await watcher.run(None)
    except TimeoutError:
        raise WaitError(
            f"{label}: not {_past(goal)} within {short_duration(seconds)}; {watcher.verdict.message}",
            hint=f"slipway describe {label}   says more; --timeout=TIME waits longer",
        ) from None
    _refuse_if_hopeless(watcher.verdict, goal, label)


class _Watcher:
    """Follows one object until the goal is met or out of reach; `verdict` is the last one."""

    def __init__(self, opened: Session, kind: Discovered, name: str, goal: Goal, first: Json | None) -> None:
        self._opened, self._kind, self._name, self._goal = opened, kind, name, goal
        self._first = first
        self.verdict: Verdict = judge(goal, first)

    async def run(self, display: Display | None) -> None:
        view = ProgressView.of(self._first) if self._first is not None else None
        if display is not None and view is not None:
            display.show(view)
        resource = self._kind.resource
        changes = follow(self._opened.client, resource, self._opened.scope(resource), name=self._name)
        async with aclosing(changes) as stream:
            async for change in stream:
                if change.type == "away":
                    self.verdict = Verdict(False, message="the API server does not answer; trying again")
                    if display is not None and view is not None:
                        display.show(replace(view, note=self.verdict.message))
                    continue
                obj = change.obj if change.type == "state" else None
                if display is not None and obj is not None:
                    view = ProgressView.of(obj)
                    display.show(view)
                if obj is not None and self._first is not None and _uid(obj) != _uid(self._first):
                    obj = None  # deleted, and created again under the same name
                self.verdict = judge(self._goal, obj)
                if self.verdict.met or not self.verdict.possible:
                    return


def _uid(obj: Json) -> str:
    return str((obj.get("metadata") or {}).get("uid"))


def _past(goal: Goal) -> str:
    return "deleted" if isinstance(goal, Deletion) else f"met: {goal}"


def _refuse_if_hopeless(verdict: Verdict, goal: Goal, label: str) -> None:
    if not verdict.met and not verdict.possible:
        raise WaitError(
            f"{label}: {goal} will not come true: {verdict.message}",
            hint=f"slipway describe {label}; slipway logs {label}",
        )
