"""The tails of the distributions that p-values need, typed: the only place that imports scipy.

All are survival functions, so that a p-value of 1e-30 is not rounded to 0 by subtracting from 1.
"""

from __future__ import annotations

import math

from scipy import special  # type: ignore[import-untyped]


def chi_square_sf(statistic: float, degrees_of_freedom: float) -> float:
    """P(X >= statistic) for X chi-square distributed."""
    return float(special.chdtrc(degrees_of_freedom, max(0.0, statistic)))


def chi_square_quantile(probability: float, degrees_of_freedom: float) -> float:
    """The value that a chi-square variable stays below with `probability`."""
    return float(special.chdtri(degrees_of_freedom, 1.0 - probability))


def gamma_sf(value: float, shape: float, scale: float) -> float:
    """P(X >= value) for X gamma distributed."""
    return float(special.gammaincc(shape, max(0.0, value) / scale))


def gamma_quantile(level: float, shape: float, scale: float) -> float:
    """The value that a gamma variable exceeds with probability `level`."""
    return float(special.gammainccinv(shape, level)) * scale


def kolmogorov_sf(distance: float, effective_size: int) -> float:
    """P(D >= distance) of the one-sample Kolmogorov statistic with `effective_size` values.

    Through scipy.stats.kstwo (Simard and L'Ecuyer 2011), which is loaded when it is first asked for. Its sum over all
    values takes most of a second for a million, so far in the tail of many values Smirnov's expansion up to 1/n takes
    its place: 2·exp(-2·(t + 1/(6·root n))^2)·(1 - 4/9·z·(z - 1)/n) with t = root n · D, z = t^2, which differs by less
    than 1e-9 there (tests/serving/drift/test_statistics.py).
    """
    square = effective_size * distance**2
    if effective_size >= 50_000 and square >= 4:
        shifted = math.sqrt(square) + 1 / (6 * math.sqrt(effective_size))
        first = 2 * math.exp(-2 * shifted**2)
        return max(0.0, first * (1 - 4 / 9 * square * (square - 1) / effective_size))
    from scipy.stats import kstwo  # type: ignore[import-untyped]  # noqa: PLC0415 - half a second to import

    return min(1.0, max(0.0, float(kstwo.sf(distance, effective_size))))


def kolmogorov_limit_sf(distance: float, effective_size: float) -> float:
    """The same in the limit of many values (Kolmogorov 1933), with Stephens' correction for few: a few microseconds."""
    root = math.sqrt(effective_size)
    return float(special.kolmogorov((root + 0.12 + 0.11 / root) * distance))


def kolmogorov_one_sided_sf(distance: float, size: float) -> float:
    """P(D+ >= distance) for many values (Smirnov 1939): exp(-2·n·D²), half of the two-sided tail's first term."""
    return math.exp(-2 * size * max(0.0, distance) ** 2)
