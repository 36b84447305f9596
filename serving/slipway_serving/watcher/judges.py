"""Who compares which part of the traffic with what.

requests   with the profile that training wrote, or that was built from documents: data drift
answers    with the first answers of this version: prediction drift. Their lengths and ends follow from what clients ask
           for, so nothing that training could have written down would be a fair reference
feedback   labels and errors with the first that came for this version: label drift, concept drift. From then on every
           error also goes through the streams (ADWIN, Page-Hinkley)

Each has windows and a detector of its own. Three detectors share the alarms that one may raise by mistake: each is
given three times the run length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from slipway_jobs.drift.detector import Detector, Settings, Verdict
from slipway_jobs.drift.errors import ProfileError
from slipway_jobs.drift.features import Features, Vocabulary
from slipway_jobs.drift.profile import LEAST, ProfileBuilder, ReferenceProfile
from slipway_jobs.drift.windows import Window, WindowRule, Windows

MOST_SECONDS = 3600.0  # of a window
LEARNT = 1000  # records that a reference is learnt from: two windows of the default size
SETTINGS = Settings(run_length=600.0)


@dataclass(frozen=True)
class Judged:
    """A window, and what was found in it."""

    window: Window
    verdict: Verdict


class Judge:
    """Windows of records, compared with a profile."""

    def __init__(
        self,
        name: str,
        profile: ReferenceProfile,
        size: int,
        clock: Callable[[], float],
        wall: Callable[[], float],
        settings: Settings = SETTINGS,
    ) -> None:
        """Calibrates the thresholds, which takes a second or so. Raises ProfileError."""
        rule = WindowRule(size, size, MOST_SECONDS)
        self.name = name
        self.detector = Detector(profile, rule, settings)
        self._windows = Windows(rule, profile.summary, clock, wall)

    def add(self, identity: str, record: Features) -> Judged | None:
        """Count a record; the window that it completes."""
        return self._judge(self._windows.add(identity, record))

    def tick(self) -> Judged | None:
        """The window that has been open for too long."""
        return self._judge(self._windows.tick())

    def _judge(self, window: Window | None) -> Judged | None:
        return None if window is None else Judged(window, self.detector.observe(window))

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"detector": self.detector.state(), "windows": self._windows.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises StateError for another profile or window size."""
        self.detector.restore(state["detector"])
        self._windows.restore(state["windows"])


class LearningJudge:
    """A judge whose profile is made of the first records. Only numbers and categories are compared."""

    def __init__(self, name: str, size: int, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.name = name
        self._size, self._clock, self._wall = size, clock, wall
        self._learnt: list[tuple[str, dict[str, float], dict[str, str]]] = []
        self._judge: Judge | None = None
        self._wanted = max(LEAST, min(LEARNT, 4 * size))

    @property
    def learning(self) -> bool:
        """Whether it still learns."""
        return self._judge is None

    def add(self, identity: str, record: Features) -> Judged | None:
        """Learn from a record, or count it."""
        if self._judge is not None:
            return self._judge.add(identity, record)
        self._learnt.append((identity, record.numbers, record.categories))
        if len(self._learnt) >= self._wanted:
            self._begin()
        return None

    def tick(self) -> Judged | None:
        """As Judge.tick."""
        return self._judge.tick() if self._judge is not None else None

    def observe_error(self, value: float) -> None:
        """Take one value of the error stream, once there is a reference for it."""
        if self._judge is not None:
            self._judge.detector.observe_error(value)

    def _begin(self) -> None:
        builder = ProfileBuilder("", Vocabulary(np.zeros(1, dtype=np.int64)), sample=len(self._learnt))
        for identity, numbers, categories in self._learnt:
            builder.add(identity, Features(numbers, categories))
        try:
            self._judge = Judge(self.name, builder.build(), self._size, self._clock, self._wall)
        except ProfileError:  # nothing has been told often enough; those that come say more
            self._learnt = self._learnt[len(self._learnt) // 2 :]

    def state(self) -> dict[str, Any]:
        """As JSON: the records learnt from, so that the profile can be made again."""
        return {"learnt": self._learnt, "judge": self._judge.state() if self._judge is not None else None}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises StateError for another window size."""
        self._learnt = [(str(identity), dict(numbers), dict(names)) for identity, numbers, names in state["learnt"]]
        self._judge = None
        if state["judge"] is not None:
            self._begin()
            if self._judge is not None:
                self._judge.restore(state["judge"])
