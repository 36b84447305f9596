"""Concept drift value by value: ADWIN and Page-Hinkley over the stream of errors (or losses, or judge scores).

The two-window test of the detector waits for a full window; these two see each value as it comes, and ADWIN also sees
what moved long after the reference was made. Page-Hinkley's mean, allowance and threshold come from the reference, and
its mean run length to a false alarm is what was asked for. Without a reference only ADWIN runs. Values are scaled by
the largest of the reference, since ADWIN wants them in [0, 1]; beyond it they are cut, and counted in `cut`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.streams.adwin import Adwin
from slipway_jobs.drift.streams.page_hinkley import PageHinkley, run_length_threshold

# In standard deviations of the reference. A lasting shift of less than the allowance is never found by Page-Hinkley.
ALLOWANCE = 0.1
MEAN_ERROR = 2.6  # standard errors: the reference's mean is off by the same amount for as long as it is in use
FLOOR = 0.1  # what a change must amount to


@dataclass(frozen=True)
class StreamChange:
    """`effect`: the shift of the mean in standard deviations. `place`: which value of the stream revealed it."""

    test: Literal["adwin", "pageHinkley"]
    statistic: float
    effect: float
    place: int


class ConceptStream:
    """One stream. `reference`: errors on the reference, may be empty; `run_length`: values up to a false alarm."""

    def __init__(self, reference: NDArray[Any], run_length: float, delta: float) -> None:
        values = np.asarray(reference, dtype=np.float64)
        values = values[np.isfinite(values)]
        self._scale = max(1.0, float(np.abs(values).max())) if values.size else 1.0
        self._adwin = Adwin(delta)
        self._page_hinkley: PageHinkley | None = None
        self._spread = float(values.std()) if values.size else 0.0
        if values.size and self._spread > 0:
            # If the mean is off, so much of the allowance is used up, and the threshold must do with the rest.
            threshold = run_length_threshold(values, ALLOWANCE * self._spread, run_length)
            allowance = (ALLOWANCE + MEAN_ERROR / math.sqrt(values.size)) * self._spread
            self._page_hinkley = PageHinkley(float(values.mean()), allowance, threshold)
        self.seen = 0
        self.missing = 0
        self.cut = 0

    def add(self, value: float | None) -> list[StreamChange]:
        """Take a value; the changes that it reveals and that are large enough to matter."""
        if value is None or not math.isfinite(value):
            self.missing += 1
            return []
        self.seen += 1
        changes = []
        scaled = value / self._scale
        self.cut += not 0 <= scaled <= 1
        cut = self._adwin.add(min(1.0, max(0.0, scaled)))
        if cut is not None:
            difference = (cut.after - cut.before) * self._scale
            changes.append(StreamChange("adwin", difference, abs(difference) / self._unit(cut.before), self.seen))
        shift = self._page_hinkley.add(value) if self._page_hinkley is not None else None
        if shift is not None:
            changes.append(StreamChange("pageHinkley", shift.amount, abs(shift.amount) / self._spread, self.seen))
        return [change for change in changes if change.effect >= FLOOR]

    def _unit(self, before: float) -> float:
        """The standard deviation of the reference, or of a rate like the one before the change."""
        return self._spread or max(1e-3, math.sqrt(max(0.0, before * (1 - before)))) * self._scale

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        return {
            "seen": self.seen,
            "missing": self.missing,
            "cut": self.cut,
            "adwin": self._adwin.state(),
            "pageHinkley": self._page_hinkley.state() if self._page_hinkley else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another one with the same reference stopped."""
        self.seen, self.missing, self.cut = int(state["seen"]), int(state["missing"]), int(state["cut"])
        self._adwin.restore(state["adwin"])
        if self._page_hinkley and state["pageHinkley"]:
            self._page_hinkley.restore(state["pageHinkley"])
