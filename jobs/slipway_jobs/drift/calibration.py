"""What the reference looks like when it is compared with itself: thresholds that need no tuning.

Windows of the size in use, and references as large as the one at hand, are drawn from the reference's records with
replacement. Whole records are drawn, which keeps the tokens of one text together. From these draws come, for each
signal,

- the threshold of its effect: the 99th percentile between drawn windows and drawn references, never below the floor;
- where the test has no distribution of its own, the null distribution of a window's squared distance: the gamma
  distribution with the mean and variance of the draws (a weighted sum of chi-squares has about that form: Satterthwaite
  1946, Rao and Scott 1981), and likewise the error of the reference itself, at the level that is asked for.

The draws are seeded by the profile: every watcher of a model has the same thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slipway_jobs.drift.comparisons import COMPARISONS, MMD_FLOOR, Comparison
from slipway_jobs.drift.profile import ReferenceProfile
from slipway_jobs.drift.signals import EMBEDDING, Signal
from slipway_jobs.drift.sketches.categories import Categories
from slipway_jobs.drift.sketches.histogram import Histogram
from slipway_jobs.drift.statistics.distributions import gamma_quantile, gamma_sf
from slipway_jobs.drift.statistics.maximum_mean_discrepancy import kernel, null_sample

DRAWS = 200
QUANTILE = 0.99
_NO_SPREAD = 1e-12  # the scale of a distribution that is a point


@dataclass(frozen=True)
class Calibrated:
    """One signal at a window size. `size`, `reference_size`: values on either side.

    `shape`, `scale`: of the gamma distribution of a window's squared distance to the truth, less `offset`; at `size`.
    `reference_error`: the distance of the reference to the truth that is exceeded with the level asked for.
    """

    effect_threshold: float
    floor: float
    size: float
    reference_size: float
    shape: float
    scale: float
    reference_error: float
    offset: float = 0.0

    def p_value(self, distance: float, size: float) -> float:
        """The chance of such a distance, or a larger one, of a window with `size` values, given this reference."""
        beyond = distance - self.reference_error
        if beyond <= 0:
            return 1.0
        return gamma_sf(beyond**2 * size / self.size - self.offset, self.shape, self.scale)

    def threshold(self, size: float, order: float) -> float:
        """The effect threshold for a window with `size` values."""
        here = 1 / max(1.0, size) + 1 / self.reference_size
        return max(
            self.floor, self.effect_threshold * math.pow(here / (1 / self.size + 1 / self.reference_size), order)
        )


def calibrate(
    profile: ReferenceProfile, size: int, levels: Mapping[str, float], draws: int = DRAWS
) -> dict[str, Calibrated]:
    """Every signal of the profile for windows of `size` records. `levels`: of the reference's error, by signal.

    Raises ValueError for a size below 2 or fewer than 20 draws.
    """
    if size < 2 or draws < 20:
        raise ValueError("windows of at least 2 records and at least 20 draws are needed")
    generator = np.random.default_rng([profile.seed & 0xFFFFFFFF, size])
    rows = profile.sample.rows
    even = np.full(rows, 1 / rows)
    windows = generator.multinomial(size, even, size=draws).astype(np.float32)
    references = generator.multinomial(rows, even, size=draws).astype(np.float32)
    result = {}
    for signal in profile.signals:
        if signal.name == EMBEDDING:
            result[signal.name] = _embedding(profile, generator, draws, levels[signal.name])
            continue
        membership = _membership(profile, signal)
        sketch = profile.layout[signal.name]
        result[signal.name] = _fit(
            COMPARISONS[signal.test],
            references @ membership,
            windows @ membership,
            membership.sum(0, dtype=np.float64),
            (max(1.0, size * sketch.size / rows), sketch.size),
            levels[signal.name],
        )
    return result


def _membership(profile: ReferenceProfile, signal: Signal) -> NDArray[np.float32]:
    """What each record of the sample adds to the counts of a signal: shape (rows, bins)."""
    sketch = profile.layout[signal.name]
    rows = profile.sample.rows
    if isinstance(sketch, Histogram):
        values = profile.sample.numbers[signal.name]
        present = np.flatnonzero(np.isfinite(values))
        places = np.searchsorted(np.array(sketch.edges), values[present], side="left")
    elif isinstance(sketch, Categories):
        index = {name: place for place, name in enumerate(sketch.names)}
        labels = profile.sample.categories[signal.name]
        present = np.array([row for row, label in enumerate(labels) if label is not None], dtype=np.int64)
        places = np.array([index.get(str(labels[row]), len(index)) for row in present.tolist()], dtype=np.int64)
    else:
        assert profile.sample.ranks is not None
        return profile.sample.ranks.astype(np.float32)
    membership = np.zeros((rows, sketch.counts.size), dtype=np.float32)
    membership[present, places] = 1
    return membership


def _fit(
    test: Comparison,
    references: NDArray[np.float32],
    windows: NDArray[np.float32],
    truth: NDArray[np.float64],
    sizes: tuple[float, float],
    level: float,
) -> Calibrated:
    """`truth`: the counts of the whole sample; `sizes`: values in a window and in the reference."""
    drawn = (references.sum(1) > 0) & (windows.sum(1) > 0)  # a feature that few records have may be absent from a draw
    others, counts = references[drawn].astype(np.float64), windows[drawn].astype(np.float64)
    if len(counts) < 2:
        return Calibrated(test.floor, test.floor, *sizes, 1.0, _NO_SPREAD, 0.0)
    threshold = float(np.quantile(test.effect(others, counts), QUANTILE))
    shape, scale = _gamma(test.distance(truth, counts) ** 2)
    error = math.sqrt(gamma_quantile(level, *_gamma(test.distance(truth, others) ** 2)))
    return Calibrated(threshold, test.floor, *sizes, shape, scale, error)


def _gamma(values: NDArray[np.float64]) -> tuple[float, float]:
    """Shape and scale with the mean and variance of positive values."""
    mean, variance = float(values.mean()), float(values.var(ddof=1))
    if mean <= 0 or variance <= 0:  # a constant reference: any difference at all is news
        return 1.0, _NO_SPREAD
    return mean**2 / variance, variance / mean


def _embedding(profile: ReferenceProfile, generator: np.random.Generator, draws: int, level: float) -> Calibrated:
    """MMD² between two halves of the reference's embeddings.

    It has the error of both halves, so it errs to caution as that of a window; the whole reference has a quarter of it.
    """
    rows = profile.embeddings
    half = len(rows) // 2
    null = null_sample(kernel(rows, profile.bandwidth), half, draws, generator)
    offset = float(null.min()) - float(null.std(ddof=1))
    shape, scale = _gamma(null - offset)
    threshold = float(np.quantile(np.sqrt(np.maximum(null, 0)), QUANTILE))
    error = math.sqrt(max(0.0, gamma_quantile(level, shape, scale) + offset) / 4)
    return Calibrated(threshold, MMD_FLOOR, half, len(rows) - half, shape, scale, error, offset)
