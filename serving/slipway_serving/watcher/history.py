"""How every signal did in the last windows: for the report, the metrics, and what is drifted now."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from slipway_jobs.drift.detector import Verdict

_WINDOWS = 400  # of each judge


@dataclass(frozen=True)
class Point:
    """A signal in a window. `alarm`: it drifted here and not before."""

    window: int
    end: float
    effect: float
    threshold: float
    evidence: float
    bar: float
    drifted: bool
    alarm: bool


class History:
    """Points by signal, and counts since the first window."""

    def __init__(self) -> None:
        self.windows = 0  # of requests, in which at least one signal could be judged
        self.alarms = 0
        self.time = 0.0  # end of the newest window, seconds since 1970
        self.skipped: dict[str, str] = {}  # signal -> why it could not be judged in the newest window
        self.points: dict[str, deque[Point]] = {}
        self._active: dict[str, list[str]] = {}  # judge -> its signals that are drifted

    def add(self, judge: str, verdict: Verdict, start: float, end: float) -> None:
        """Take note of a verdict."""
        self.time = max(self.time, end, start)
        if judge == "requests":
            self.windows += bool(verdict.results)
            self.skipped = dict(verdict.skipped)
        self.alarms += len(verdict.alarms)
        self._active[judge] = list(verdict.active)
        new = {alarm.signal for alarm in verdict.alarms if alarm.p_value is not None}
        for result in verdict.results:
            self.points.setdefault(result.signal, deque(maxlen=_WINDOWS)).append(
                Point(
                    verdict.window,
                    end,
                    result.effect,
                    result.threshold,
                    result.evidence,
                    result.bar,
                    result.drifted,
                    result.signal in new,
                )
            )

    def active(self) -> list[str]:
        """Signals that are drifted now, by name."""
        return sorted({signal for signals in self._active.values() for signal in signals})

    def newest(self) -> dict[str, tuple[float, bool]]:
        """Signal -> (effect over threshold, whether it is drifted), in its newest window."""
        return {
            signal: (points[-1].effect / points[-1].threshold if points[-1].threshold else 0.0, points[-1].drifted)
            for signal, points in list(self.points.items())
        }

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "windows": self.windows,
            "alarms": self.alarms,
            "time": self.time,
            "skipped": self.skipped,
            "active": self._active,
            "points": {
                signal: [list(vars(point).values()) for point in points] for signal, points in self.points.items()
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """From `state`."""
        self.windows, self.alarms, self.time = int(state["windows"]), int(state["alarms"]), float(state["time"])
        self.skipped, self._active = dict(state["skipped"]), dict(state["active"])
        self.points = {
            signal: deque((Point(*point) for point in points), maxlen=_WINDOWS)
            for signal, points in state["points"].items()
        }
