"""One queue for everything that wants a part of this machine: RayJobs and RayServices, each from its own controller.

What admits and what reserves must see the same moment, so whoever asks for a verdict reserves before it awaits again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from slipway_local.ray_runner.admission import Waiting, admit
from slipway_local.ray_runner.resources import Resources, total
from slipway_operator.kube.resource import Key


class Claimant(Protocol):
    """A controller whose objects hold resources."""

    async def refresh(self) -> None:
        """Brings what it knows of its objects up to date."""

    def waiting(self, now: datetime, capacity: Resources) -> list[Waiting]:
        """Those that queue for resources."""

    def held(self) -> list[Resources]:
        """What the others hold."""

    def wake_waiting(self, but: Key | None = None) -> None:
        """Makes those that queue look again, all but one."""


class Room:
    """The machine's resources, shared by all claimants."""

    def __init__(self) -> None:
        self._claimants: list[Claimant] = []

    def join(self, claimant: Claimant) -> None:
        """One more that is asked."""
        self._claimants.append(claimant)

    async def verdict(self, uid: str, now: datetime, capacity: Resources) -> str | None:
        """What this one still waits for; None when it may start. Reserve before the next await."""
        for claimant in self._claimants:
            await claimant.refresh()
        waiting = [one for claimant in self._claimants for one in claimant.waiting(now, capacity)]
        held = [one for claimant in self._claimants for one in claimant.held()]
        verdict = admit(waiting, capacity - total(held), capacity).get(uid)
        if verdict is None:
            return "waiting"  # the cache has just learned why; it is looked at again
        return None if verdict.admitted else verdict.message

    def changed(self, by: Claimant, but: Key | None = None) -> None:
        """There is more or less to have: all that queue look again, but the one that says so."""
        for claimant in self._claimants:
            claimant.wake_waiting(but if claimant is by else None)
